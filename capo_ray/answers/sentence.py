r"""The answer in a sentence that announces one: `The value of $k$ is $12$` -> `12`, `40 dollars per day` -> `40`.

begins with a formula or number   that one; formulas joined by commas, "and", "or" are one list; words after it go
names its subject first           what follows its "is", "are", "=" before a formula or number
holds a single number             that number, unless it begins with "not"
else                              its words
"""

from __future__ import annotations

import re

MAX_CHARS = 4096
_MATH = (
    r"(?:\$\$[^$]{1,2000}\$\$|\$(?! ?[0-9.,]+ )(?:[^$\\]|\\.){1,2000}(?<! )\$|\$ [^$]{1,2000} \$"
    r"|\\\([^$]{1,2000}?\\\)|\\\[[^$]{1,2000}?\\\])"
)
_NUMBER = r"[-+−–]?(?:\\?[$£€¥])?[-−]?[0-9]++(?:[.,/][0-9]++)*+(?:[ ]?\\?[%％])?"
_HEAD = re.compile(rf"{_MATH}(?:[ ]?(?:,|;|and|or|, ?and|, ?or)[ ]?{_MATH})*")
_HEAD_NUMBER = re.compile(rf"({_NUMBER})(?=[.,;]?(?:[ ]+\(?[^\W\d_]{{2,}}|[\u3040-\u9fff]|$))")
_RELATION = re.compile(
    r"(?:\b(?:is|are|was|be|equals?)|=)(?: equal to| exactly| just| only|:)?[ ]{0,4}\*{0,2}"
    rf"(?=\$|\\[(\[]|{_NUMBER})"
)
_COUNTED = re.compile(rf"(?<![\w$\\^{{.]){_NUMBER}(?![\w}}])")
_SENTENCE_END = re.compile(r"\.(?=[ \t]+\S)|\.[ \t]*$|[。．！](?![0-9])")
_NOT_THIS = re.compile(rf"not (?:equal to )?(?:\$|\\[(\[]|{_NUMBER})", re.IGNORECASE)
_CLAUSE = re.compile(rf"(?<=[\w.%)])[,;]?(?: and| but)? (?:because|since|not (?={_NUMBER})|not \$)")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def read_sentence(text: str) -> str | None:
    """The answer that a line holds, as it is spelled; None for an empty one."""
    line = _bare(text[:MAX_CHARS])
    if _NOT_THIS.match(line):
        return None
    head = _HEAD.match(line)
    if head is None:
        if end := _SENTENCE_END.search(line):
            line = _bare(line[: end.start()])
        if not line:
            return None
        if not _PROSE.match(line):
            return _number_or_all(line)
    elif not (after := line[head.end() :].lstrip()).startswith(("=", "is ", "are ", "equals ")):
        return _with_percent(head.group(), after)
    elif after.startswith("="):  # "$x$ = 5"
        line = line if not (end := _SENTENCE_END.search(line)) else line[: end.start()]
        return line.replace("$", "").replace("\\(", "").replace("\\)", "").strip()
    if relation := _RELATION.search(line):
        rest = _bare(line[relation.end() :])
        if head := _HEAD.match(rest):
            return _with_percent(head.group(), rest[head.end() :].lstrip())
        return _number_or_all(rest)
    counted = _COUNTED.findall(line)
    if len(counted) == 1 and "\\" not in line:
        return counted[0].rstrip(".,")
    return line or None


def _with_percent(formula: str, after: str) -> str:
    return f"{formula}\\%" if after.startswith(("%", "\\%", "percent")) else formula


def _number_or_all(line: str) -> str | None:
    """The number at the head where only words follow it before any clause that says why or what it is not, else all."""
    if clause := _CLAUSE.search(line):
        line = line[: clause.start()].rstrip()
    if (number := _HEAD_NUMBER.match(line)) and not re.search(r"[0-9=\\]", line[number.end() :]):
        rest = line[number.end() :].lstrip()
        return number.group(1) + ("\\%" if rest.startswith(("percent", "pct")) else "")
    return line or None


def _bare(text: str) -> str:
    return text.strip().strip("*_`").strip()
