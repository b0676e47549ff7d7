r"""Where the final answer stands in a response, in linear time whatever the text.

Order, first that is found wins; within a kind the last occurrence wins, since a response may correct itself:
    1. `\boxed{…}` or `\fbox{…}` with balanced braces (an unfinished one is passed over)
    2. `#### 42` on a line of its own
    3. `The (final) answer is …`, `Answer: …`, or a line `A: …`
    4. a response that is nothing but one short line, one word or a formula with a digit: the line itself
What stands before the last `</think>` is not read, and of a longer response only the last `MAX_TAIL_CHARS`. There is no
"last number in the text" rule: it rewards luck.
"""

from __future__ import annotations

import re

MAX_TAIL_CHARS = 65_536
MAX_BARE_CHARS = 64
MAX_LINE_CHARS = 4096

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)[ \t]{0,4}\{|\\.|[{}]", re.DOTALL)
_PLAIN_BOX = re.compile(r"\\boxed\{([^{}\\]*)\}")
_BARE_BOX = re.compile(r"\\boxed[ \t]{1,4}([^\s{}\\$]{1,64})")
_HASHES = re.compile(r"^[ \t]{0,8}#{4}[ \t]{0,8}([^\n]{1,4096})$", re.MULTILINE)
_PHRASE = re.compile(
    r"(?:\banswer(?:\*\*)?[ \t]{0,4}(?:is\b[ \t]{0,4}:?|:|=)|^[ \t]{0,8}A:)(?:\*\*)?[ \t]{0,4}",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBER_THEN_WORDS = re.compile(r"([-+]?\\?\$?[0-9][0-9.,/]*(?:[ ]?\\?%)?)[ ]+[A-Za-z]{3,}[A-Za-z .,'!-]*")
_SENTENCE_END = re.compile(r"\.(?=[ \t]+\S)|\.[ \t]*$")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_LETTER = re.compile(r"[ \t(\[]*([A-Za-z])(?:[)\]]|[.:](?:\s|$)|[ \t]*$)")
_TEXT_WRAP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|bf|rm)\b[ ]?\{?|[{}$*]")


def extract_answer(response: str) -> str | None:
    """The final answer's text as the response spells it, or None where none is marked."""
    tail = response[-MAX_TAIL_CHARS:]
    thought = tail.rfind("</think>")
    if thought >= 0:
        tail = tail[thought + len("</think>") :]
    found = _last_box(tail)
    if found is None and (hashes := _last(_HASHES, tail)) is not None:
        found = _sentence(hashes)
    if found is None and (start := _end_of_last(_PHRASE, tail)) is not None:
        found = _sentence(tail[start : start + MAX_LINE_CHARS].split("\n", 1)[0])
    if found is None and len(response) <= MAX_BARE_CHARS * 2:
        found = _bare_line(tail)
    return found or None


def reference_answer(text: str) -> str:
    """The answer in a data set's answer column, which may be a worked solution with a box or `####` at its end."""
    if "\\boxed" in text or "####" in text or "answer is" in text.lower():
        return extract_answer(text) or text.strip()
    return text.strip()


def choice_letter(text: str) -> str | None:
    """The upper-case letter of a choice answer (`B`, `(b)`, `\\text{(B)}`, `B. Paris`), None for other text."""
    match = _LETTER.match(_TEXT_WRAP.sub("", text[:256]).strip())
    return match.group(1).upper() if match else None


def _last_box(text: str) -> str | None:
    """The content of the complete box that ends last; the inner one where a box holds nothing but a box."""
    start = text.rfind("\\boxed")
    if start < 0 and "\\fbox" not in text:
        return None
    if start >= 0 and (plain := _PLAIN_BOX.match(text, start)) and "\\fbox" not in text:
        return plain.group(1).strip()
    content = _closed_box(text[start:]) if start >= 0 and "\\fbox" not in text else None
    if content is None:
        content = _closed_box(text)
    if content is None:
        bare = _last(_BARE_BOX, text)
        return bare.strip() if bare else None
    for _ in range(4):
        inner = content.strip()
        if not (inner.startswith(("\\boxed", "\\fbox")) and inner.endswith("}")):
            break
        inside = _closed_box(inner)
        if inside is None:
            break
        content = inside
    return content.strip()


def _closed_box(text: str) -> str | None:
    """One pass over the braces: the content of the box whose closing brace stands last."""
    open_braces: list[int] = []  # start of the content for a box, -1 for a plain brace
    content: tuple[int, int] | None = None
    for match in _BOX_OR_BRACE.finditer(text):
        token = match.group()
        if token == "{":
            open_braces.append(-1)
        elif token == "}":
            if open_braces and (start := open_braces.pop()) >= 0:
                content = (start, match.start())
        elif token.startswith(("\\boxed", "\\fbox")):
            open_braces.append(match.end())
    return text[content[0] : content[1]] if content else None


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    """Group 1 of the last match."""
    found = None
    for match in pattern.finditer(text):
        found = match.group(1)
    return found


def _end_of_last(pattern: re.Pattern[str], text: str) -> int | None:
    """Where the last match ends."""
    end = None
    for match in pattern.finditer(text):
        end = match.end()
    return end


def _sentence(line: str) -> str | None:
    """The answer at the head of the rest of a line: its formula if it has one, else up to the sentence's end."""
    line = line.strip().strip("*").strip()
    first, last = line.find("$"), line.rfind("$")
    if first >= 0 and last > first and not line[:first].endswith("\\"):
        return line[first : last + 1]
    if end := _SENTENCE_END.search(line):
        line = line[: end.start()]
    line = line.strip().strip("*").strip()
    if number := _NUMBER_THEN_WORDS.fullmatch(line):
        line = number.group(1).rstrip(".,")
    return line or None


def _bare_line(text: str) -> str | None:
    """The whole text where it is one short line that can only be an answer."""
    line = text.strip()
    if not line or "\n" in line or len(line) > MAX_BARE_CHARS:
        return None
    if len(line.split()) == 1 or (any("0" <= c <= "9" for c in line) and not _PROSE.search(line)):
        return line
    return None
