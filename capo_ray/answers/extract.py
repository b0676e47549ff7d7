r"""Where the final answer stands in a response: one pass over its end, linear in time whatever the text.

    candidates, by where they stand:   \boxed{…}, adjacent ones joined     <answer> … </answer>
                                       #### 42                             the answer is …, Answer: …, 答案是 …
    the last of them is the answer, since a response may correct itself: what is said last wins

A phrase that goes on in words ("the answer is easy to check") yields to every other kind; `####` before words is a
Markdown heading. A response without any is read only where it is nothing but one short line. What stands before the
last `</think>` is not read, nor more than `MAX_TAIL_CHARS` from the end. No "last number in the text": it rewards luck.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from capo_ray.answers.sentence import read_sentence

MAX_TAIL_CHARS = 65_536
MAX_BARE_CHARS = 64
MAX_LINE_CHARS = 4096
MAX_OPEN = 200
MAX_GAP_CHARS = 80
MAX_WORDS = 4
MAX_PHRASES = 32

_BOX_OR_BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)[ \t]{0,4}\{|\\boxed[ \t]{1,4}(?=[^\s{}\\$])|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[^\s{}\\$]{1,64}")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&、，]|\\[\[\](),;:! ]|\\q?quad|\\text(?:bf|rm)? ?\{ ?(?:and|or|,)? ?\}"
    r"|\band\b|\bor\b|和|或|[a-zA-Z] ?=)*+"
)
_HASHES = re.compile(r"(?<!#)####(?!#)")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?P<final>final[ \t]{1,4})?(?:(?<![A-Za-z])answers?|\bcorrect (?:option|choice))[*_]{0,3}[ \t]{0,4}"
    r"(?:(?:is|are)\b[ \t]{0,4}:?|[:：=]|(?=\$))"
    r"|^[ \t]{0,8}A:"
    r"|^[ \t#*_]{0,12}(?P<heading>(?:final[ \t]{1,4})?answer)[*_]{0,3}[ \t]{0,8}$"
    r"|\b(?:respuesta|r[eé]ponse|antwort|risposta|resposta)(?: \w{1,10})?(?: (?:es|est|ist|[eèé])\b|[ ]?:)"
    r"|ответ[ ]?[:—-]"
    r"|答案(?:是|为|為)?[ ]?[:：]?|故选[ ]?[:：]?|故選[ ]?[:：]?|答え[はが][ ]?[:：]?",
    re.IGNORECASE | re.MULTILINE,
)
_OUR_ANSWER = re.compile(r"\$([^$\n]{1,400})\$ is (?:our|the)(?: final)? answer", re.IGNORECASE)
_ORDINAL = re.compile(r"[0-9]{1,3}[.)][ ]?[A-Za-z]")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


@dataclass(frozen=True, slots=True)
class _Found:
    """A candidate: where it ends, its text, and whether it is more than words after a phrase."""

    end: int
    text: str
    firm: bool = True


def extract_answer(response: str) -> str | None:
    """The final answer's text as the response spells it, or None where none is marked."""
    tail = response[-MAX_TAIL_CHARS:]
    thought = tail.rfind("</think>")
    if thought >= 0:
        tail = tail[thought + len("</think>") :]
    found = [*_boxes(tail), *_hashes(tail), *_tags(tail), *_phrases(tail)]
    if found:
        return max(found, key=lambda one: (one.firm, one.end)).text or None
    return _bare_line(tail)


def reference_answer(text: str) -> str:
    """The answer in a data set's answer column, which may be a worked solution that marks its answer."""
    if any(mark in text for mark in ("\\boxed", "\\fbox", "####", "\n")) or "answer is" in text.lower():
        return extract_answer(text) or text.strip()
    return text.strip()


def _boxes(text: str) -> list[_Found]:
    """The last box, with those that directly precede it: one list, or one answer where all say the same."""
    group: list[tuple[int, int, str]] = []
    for start, end, content in reversed(_outer_boxes(text)):
        if group:
            gap = text[end : group[-1][0]]
            if len(gap) > MAX_GAP_CHARS or not _BETWEEN_BOXES.fullmatch(gap):
                break
        group.append((start, end, content))
    if not group:
        return []
    contents = list(dict.fromkeys(content for _, _, content in reversed(group)))
    return [_Found(group[0][1], ", ".join(contents))]


def _outer_boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the boxes that no other one holds; a box around nothing but a box is the inner one."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return []
    opened: list[tuple[int, int]] = []  # start of box and content; -1 for a plain brace
    boxes: list[tuple[int, int, str]] = []
    for match in _BOX_OR_BRACE.finditer(text):
        token = match.group()
        if token == "}":
            if not opened or (place := opened.pop())[0] < 0:
                continue
            content = text[place[1] : match.start()].strip()
            while boxes and boxes[-1][0] > place[0]:
                start, end, inner = boxes.pop()
                if content == text[start:end]:
                    content = inner
            boxes.append((place[0], match.end(), content))
        elif token == "{":
            opened.append((-1, -1))
        elif token.endswith("{") and len(token) > 2:
            opened.append((match.start(), match.end()))
        elif token.startswith("\\boxed"):
            bare = _BARE_BOX.match(text, match.end())
            if bare is not None:
                boxes.append((match.start(), bare.end(), bare.group().rstrip(".,;")))
        if len(opened) > MAX_OPEN:
            opened.clear()
    return boxes


def _hashes(text: str) -> Iterator[_Found]:
    """What follows `####`, in mid-line too; words after it are a heading, except at the end."""
    marks = [match.end() for match in _HASHES.finditer(text)]
    for place, until in reversed([*zip(marks, [*marks, len(text)][1:], strict=True)]):
        rest = text[place : min(until, place + MAX_LINE_CHARS)].lstrip(" \t").split("\n", 1)[0].rstrip("#")
        rest = rest.strip().strip("*").strip()
        if not rest or _ORDINAL.match(rest) or _PHRASE.search(rest):
            continue
        is_end = not text[place:].lstrip().partition("\n")[2].strip()
        if not _PROSE.match(rest) or (is_end and len(rest.split()) <= MAX_WORDS):
            yield _Found(place + 1, read_sentence(rest) or rest)
            return


def _tags(text: str) -> Iterator[_Found]:
    """What stands in `<answer>` tags, read like a response of its own; the closing tag may be cut off at the end."""
    start = -1
    last: tuple[int, int] | None = None
    for match in _TAG.finditer(text):
        if not match.group(1):
            start = match.end()
        elif start >= 0:
            last, start = (start, match.start()), -1
    if start >= 0 and len(text) - start <= MAX_LINE_CHARS:
        last = (start, len(text))
    if last is None:
        return
    inside = text[last[0] : last[1]].strip()
    marked = [*_boxes(inside), *_hashes(inside), *_phrases(inside)]
    if marked:
        yield _Found(last[1], max(marked, key=lambda one: (one.firm, one.end)).text)
    elif inside:
        yield _Found(last[1], read_sentence(inside) or inside)


def _phrases(text: str) -> Iterator[_Found]:
    """What follows a phrase that announces an answer, in its line or the next that is not empty."""
    for match in _OUR_ANSWER.finditer(text):
        yield _Found(match.end(), match.group(1).strip())
    for match in deque(_PHRASE.finditer(text), MAX_PHRASES):
        passage = _passage(text[match.end() : match.end() + MAX_LINE_CHARS].lstrip(" \t*_:："))
        if answer := read_sentence(passage):
            named = match.group("final") or match.group("heading")
            yield _Found(match.end() + 1, answer, bool(named) or not _PROSE.match(passage.lstrip("*_( ")))


def _passage(rest: str) -> str:
    """The line that begins here or below, or the display formula that does."""
    rest = rest.strip()
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if rest.startswith(opening) and (end := rest.find(closing, 2)) > 0:
            return rest[: end + 2].replace("\n", " ")
    return rest.split("\n", 1)[0]


def _bare_line(text: str) -> str | None:
    """The whole text where it is one short line that can only be an answer."""
    line = text.strip()
    if not line or "\n" in line or len(line) > MAX_BARE_CHARS:
        return None
    if len(line.split()) == 1 or (any("0" <= c <= "9" for c in line) and not _PROSE.search(line)):
        return line
    return None
