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
BLOCK_CHARS = 1024
MAX_OPEN = 200

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)[ \t]{0,4}\{|\\.|[{}]", re.DOTALL)
_PLAIN_BOX = re.compile(r"\\boxed\{([^{}\\]*)\}")
_BARE_BOX = re.compile(r"\\boxed[ \t]{1,4}([^\s{}\\$]{1,64})")
_HASHES = re.compile(r"^[ \t]{0,8}#{4}[ \t]{0,8}([^\n]{1,4096})$", re.MULTILINE)
_PHRASE = re.compile(
    r"(?:\banswer(?:\*\*)?[ \t]{0,4}(?:is\b[ \t]{0,4}:?|:|=)|^[ \t]{0,8}A:)(?:\*\*)?[ \t]{0,4}",
    re.IGNORECASE | re.MULTILINE,
)
_LINE = re.compile(r"\n[ \t]{0,8}a:")
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
    if found is None and "####" in tail and (hashes := _last(_HASHES, tail)) is not None:
        found = _sentence(hashes.group(1))
    if found is None and (start := _end_of_phrase(tail)) is not None:
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
    first = min(place for place in (text.find("\\boxed"), text.find("\\fbox")) if place >= 0)
    first = len(text[:first].rstrip("\\"))  # an escaped backslash before it makes it none
    if start >= 0 and (plain := _PLAIN_BOX.match(text, start)) and "\\fbox" not in text:
        return plain.group(1).strip()
    content = _closed_box(text[start:], MAX_OPEN) if start >= 0 and "\\fbox" not in text else None
    if content is None and (first != start or "\\fbox" in text):
        content = _closed_box(text[first:])
    if content is None:
        bare = _last(_BARE_BOX, text)
        return bare.group(1).strip() if bare else None
    for _ in range(4):
        inner = content.strip()
        if not (inner.startswith(("\\boxed", "\\fbox")) and inner.endswith("}")):
            break
        inside = _closed_box(inner)
        if inside is None:
            break
        content = inside
    return content.strip()


def _closed_box(text: str, most_open: int = MAX_TAIL_CHARS) -> str | None:
    """One pass over the braces, ended where too many are open: the content of the box that is closed last."""
    if "}" not in text:
        return None
    open_braces: list[int] = []  # start of the content for a box, -1 for a plain brace
    content: tuple[int, int] | None = None
    for match in _BOX_OR_BRACE.finditer(text):
        token = match.group()
        if token == "{":
            open_braces.append(-1)
            if len(open_braces) > most_open:
                break
        elif token == "}":
            if open_braces and (start := open_braces.pop()) >= 0:
                content = (start, match.start())
        elif token.startswith(("\\boxed", "\\fbox")):
            open_braces.append(match.end())
    return text[content[0] : content[1]] if content else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match, looked for from the end of the text, block after block."""
    size = BLOCK_CHARS
    while True:
        place = max(0, len(text) - size)
        found = None
        for match in pattern.finditer(text, place):
            found = match
        if found is not None or place == 0:
            return found
        size *= 8


def _end_of_phrase(text: str) -> int | None:
    """Where the last phrase that announces an answer ends."""
    folded = text.casefold()  # holds what the pattern's IGNORECASE lets pass, found at a fraction of its time
    if "answer" not in folded and "a:" not in folded:
        return None
    if len(folded) != len(text):
        return match.end() if (match := _last(_PHRASE, text)) else None
    found = None
    place = folded.rfind("answer")
    while place >= 0 and (found := _PHRASE.match(text, place)) is None:
        place = folded.rfind("answer", 0, place)
    start = 0
    for line in _LINE.finditer(folded):
        start = line.start() + 1
    if (found is None or start > found.start()) and (other := _PHRASE.match(text, start)):
        found = other
    return found.end() if found else None


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
