r"""Whether two answers are the same, as far as text alone can tell.

`decide` holds the house rules, which stand above math-verify and bind both paths:
    - identical normalised texts are equal (also where the library cannot parse them, such as 1/0)
    - an answer above `MAX_ANSWER_CHARS` equals nothing but itself: it is no final answer
    - words are compared as words: math-verify reads `east` and `seat` as the same product of letters
    - braces against parentheses, `\{1,2\}` against `(1,2)`: a set is not a tuple or interval, so never equal
      (math-verify calls them equal); a bare list `1,2` has no order and may stand for either
    - digits side by side, `12 3` or `2(3)`, are no number (math-verify adds them up)
`50\%` equals `0.5` (its value; math-verify says no) and also `50` (the unit left out; math-verify says yes).
"""

from __future__ import annotations

import re
from functools import lru_cache

from capo_ray.answers.numbers import read_number, same_entries, same_number
from capo_ray.answers.shapes import MARKED_TEXT, WORD, differ, is_word

MAX_ANSWER_CHARS = 1024

_WRAPPED = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))
_FRAC = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_SIZED = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg)(?=[()\[\]]|\\[{}])")
_THIN_SPACE = re.compile(r"\\!\s*|(?<=[0-9])(?:\\[,;: ]|\{[,]\})\s?(?=[0-9]{3}(?![0-9]))")
_SPACES = re.compile(r"\s+")
_SPACE_AROUND = re.compile(r" ?([=+\-*/^_{}()\[\]|<>]) ?")
_SPACE_COMMA = re.compile(r" ?,( ?)(?![0-9]{3}(?![0-9]))")
_SPACED_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_MIXED = re.compile(r"(-?[0-9]+) ([0-9]+)/([0-9]+)")
_APART = re.compile(r"-?[0-9.,]+(?: [0-9.,]+)+|-?(?:[0-9.]+|\([0-9.]+\))(?:\([0-9.]+\))+")


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    """The text without its wrapping, spacing and typographic variants; the same value to a reader."""
    text = _SPACES.sub(" ", text.replace("−", "-").replace("\u00a0", " ")).strip()
    for opening, closing in _WRAPPED:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            inside = text[len(opening) : -len(closing)]
            if opening not in inside and closing not in inside:
                text = inside.strip()
    text = text.replace("\\$", "").replace("$", "")
    text = _SIZED.sub("", _FRAC.sub(r"\\frac", text))
    text = _THIN_SPACE.sub("", text)
    text = _SPACE_COMMA.sub(",", _SPACE_AROUND.sub(r"\1", text)).strip()
    if text.endswith(".") and not text.endswith(("..", "\\right.")):
        text = text[:-1].rstrip()
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    if mixed := _MIXED.fullmatch(text):
        text = f"{mixed.group(1)}\\frac{{{mixed.group(2)}}}{{{mixed.group(3)}}}"
    return text


def decide(a: str, b: str) -> bool | None:
    """The house rules' word on two normalised answers, or None where they have none."""
    if not a or not b:
        return False
    if a == b:
        return True
    if len(a) > MAX_ANSWER_CHARS or len(b) > MAX_ANSWER_CHARS:
        return False
    words = _words(a, b)
    if words is not None:
        return words
    if (_is_set(a) and _is_tuple(b)) or (_is_set(b) and _is_tuple(a)):
        return False
    if _APART.fullmatch(a) or _APART.fullmatch(b):
        return False
    return None


@lru_cache(maxsize=4096)
def fast_equal(a: str, b: str) -> bool | None:
    """Whether answer `b` equals reference `a`; None where only `slow_equal` can tell."""
    if a == b and a.strip():
        return True
    if len(a) > 2 * MAX_ANSWER_CHARS or len(b) > 2 * MAX_ANSWER_CHARS:
        return False
    a, b = normalise(a), normalise(b)
    decided = decide(a, b)
    if decided is not None:
        return decided
    first, second = read_number(a), read_number(b)
    if first and second:
        return same_number(first, second)
    if (first and is_word(b)) or (second and is_word(a)):
        return False
    same = same_entries(a, b)
    return False if same is None and differ(a, b) else same


def exact_equal(a: str, b: str) -> bool:
    """Whether two answers are the same text, spacing at the ends and runs of white space apart."""
    return a == b or _SPACES.sub(" ", a).strip() == _SPACES.sub(" ", b).strip()


def _words(a: str, b: str) -> bool | None:
    """Whether two texts are the same word, where at least one is marked as text or both look like words."""
    first, second = MARKED_TEXT.fullmatch(a), MARKED_TEXT.fullmatch(b)
    left = WORD.fullmatch((first.group(1) if first else a).strip())
    right = WORD.fullmatch((second.group(1) if second else b).strip())
    if not left or not right:
        return None
    x, y = (" ".join(word.group(1).replace("-", " ").split()).casefold() for word in (left, right))
    if first or second or (len(x) > 2 and len(y) > 2):
        return x == y
    return None


def _is_set(text: str) -> bool:
    return text.startswith("\\{") and text.endswith("\\}") and "," in text and text.count("\\{") == 1


def _is_tuple(text: str) -> bool:
    """Whether one pair of parentheses or brackets spans the whole text and holds a comma of its own."""
    if text[0] not in "([" or text[-1] not in ")]" or "," not in text:
        return False
    depth = 0
    for index, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and index < len(text) - 1:
            return False
    return depth == 0
