r"""Multiple choice: which options a text names, as `B`, `(b)`, `\text{(B)}`, `B. Paris`, `A, C`, `B and D`, `2`."""

from __future__ import annotations

import re

from capo_ray.answers.extract import MAX_TAIL_CHARS, extract_answer

MAX_LINE_CHARS = 256
_DRESS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|bf|rm)\b[ ]?\{?|\\[,;! ]|[{}$*`\"]")
_NAMED = re.compile(r"(?:the )?(?:correct )?(?:options?|choices?|answer)[ :]{1,3}(?=\(?[A-Za-z0-9]\b)", re.IGNORECASE)
_ONE = re.compile(r"[(\[]?([A-Za-z]|[0-9])(?:[)\]]|(?=[.:](?:\s|$))|(?=[ \t]*$)|(?= [-–—] )|(?=[。．，、）]))")
_SEVERAL = re.compile(r"[(\[]?([A-Z](?:[)\]]?(?:[ ,;&/、，]|and|or)*[(\[]?[A-Z]){1,9})[)\].]*")
_OPTION = re.compile(
    r"\b(?:option|choice)[ ]\*{0,2}\(?([A-Z])\b(?!['’])"
    r"|(?<![\w'])\(?([A-Z])\)?\*{0,2} is (?:therefore |thus |clearly )?(?:the )?(?:correct|right|best|answer)"
    r"|\banswer\b[^.\n]{0,80} is \*{0,2}\(([A-Z])\)"
)


def choice_letter(text: str) -> str | None:
    """The options that a short text names, upper-case and sorted (`B`, `AC`, `2`); None for other text."""
    text = _DRESS.sub("", text[:MAX_LINE_CHARS]).strip()
    if named := _NAMED.match(text):
        text = text[named.end() :]
    if several := _SEVERAL.fullmatch(text):
        return "".join(sorted(set(re.findall(r"[A-Z]", several.group(1)))))
    one = _ONE.match(text)
    return one.group(1).upper() if one else None


def extract_choice(response: str) -> tuple[str | None, str | None]:
    """The options that a response settles on, and the text that says so; phrases of `extract_answer` come first."""
    extracted = extract_answer(response)
    if extracted and (letters := choice_letter(extracted)):
        return letters, extracted
    tail = response[-MAX_TAIL_CHARS:].rpartition("</think>")[2]
    found = None
    for match in _OPTION.finditer(tail):
        found = match[match.lastindex or 0]
    if found is None and "\n" not in (line := tail.strip()) and len(line) <= MAX_LINE_CHARS:
        letters = choice_letter(line)  # `B) Paris` and nothing else
        return letters, line if letters else None
    return found, found
