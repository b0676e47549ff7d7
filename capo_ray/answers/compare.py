r"""Whether two answers are the same: what text alone decides, lists entry by entry, and a `leaf` for two formulas.

`decide` holds the house rules, which stand above math-verify and bind both paths:
    - identical texts, white space and braces of one token apart, are equal (also where no library can read them)
    - an answer above `MAX_ANSWER_CHARS` equals nothing but itself: it is no final answer
    - words are compared as words: math-verify reads `east` and `seat` as the same product of letters
    - braces against parentheses, `\{1,2\}` against `(1,2)`: a set is not a tuple or interval, so never equal
      (math-verify calls them equal); a bare list `1,2` has no order and may stand for either
    - digits side by side, `12 3` or `2(3)`, are no number (math-verify adds them up)
    - points have names, `\angle ABC`, numerals a base, `4210_7`, derivatives a prime, and `5 h 20 min` is two amounts:
      the library drops all of that
`50\%` equals `0.5` (its value; math-verify says no) and also `50` (the unit left out; math-verify says yes).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import lru_cache

from capo_ray.answers.numbers import read_number, same_number
from capo_ray.answers.parts import entries_of, split_name
from capo_ray.answers.reals import Span, read_reals
from capo_ray.answers.spelling import normalise

MAX_ANSWER_CHARS = 1024
MAX_DEPTH = 3

Leaf = Callable[[str, str], bool | None]

_MARKED_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\{([^{}\\]*)\}")
_WORD = re.compile(r"\(?([A-Za-z][A-Za-z' -]*)\)?")
_SPACES = re.compile(r"\s+")
_APART = re.compile(r"-?[0-9.,]+(?: [0-9.,]+)+|-?(?:[0-9.]+|\([0-9.]+\))(?:\([0-9.]+\))+")
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[0-9]+(?:\.[0-9]+)?|\S")
_ONE_IN_BRACES = re.compile(r"([\^_])\{(\w)\}")
_POINTS = re.compile(r"\\(angle|measuredangle|triangle|overrightarrow|vec|overline|arc|widehat)\{?([A-Z]{2,5})\}?")
_NUMERAL = re.compile(r"([0-9][0-9A-F]*|[A-F][0-9A-F]+)_\{?([0-9]{1,2})\}?")
_UNIT = r" ?(?:\\(?:text|mbox|mathrm)\{[^{}0-9]*\}|[a-z]{1,12}) ?,? ?(?:and )?"
_TWO_AMOUNTS = re.compile(rf"-?[0-9.]+{_UNIT}[0-9.]+{_UNIT}")
_RELATION = re.compile(r"[=<>|]|\\(?:[lg]e|ne|begin|cup|in)(?![a-zA-Z])")
_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+")
_CLOCK = re.compile(r"([0-9]{1,2}:[0-9]{2})[ap]m")
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(rf"(-?[0-9]{{1,20}}(?:\.[0-9]{{1,8}})?)({'|'.join(_SCALES)})")
_COMMA = re.compile(r"(-?[0-9]+),([0-9]+)")


def decide(a: str, b: str) -> bool | None:
    """The house rules' word on two normalised answers, or None where they have none."""
    if not a or not b:
        return False
    if a == b:
        return True
    if len(a) > MAX_ANSWER_CHARS or len(b) > MAX_ANSWER_CHARS:
        return False
    if _tokens(a) == _tokens(b):
        return True
    first, second = _CLOCK.fullmatch(a), _CLOCK.fullmatch(b)
    if first and second:
        return False
    if first or second:  # the half of the day may be left out on one side, and `:00` with it
        time, other = (first.group(1), b) if first else (second.group(1) if second else "", a)
        return time.removesuffix(":00") == other.removesuffix(":00")
    words = _words(a, b)
    if words is not None:
        return words
    if (_is_set(a) and _is_tuple(b)) or (_is_set(b) and _is_tuple(a)):
        return False
    if _APART.fullmatch(a) or _APART.fullmatch(b) or _TWO_AMOUNTS.fullmatch(a) or _TWO_AMOUNTS.fullmatch(b):
        return False
    return _named(a, b)


def same(a: str, b: str, leaf: Leaf, depth: int = 0) -> bool | None:
    """Whether normalised answer `b` equals reference `a`; None where the leaf, asked about formulas, cannot tell."""
    if scaled := _scaled(a, b):
        verdicts = [same(x, y, leaf, depth) for x, y in scaled]
        return True if True in verdicts else (None if None in verdicts else False)
    decided = decide(a, b)
    if decided is not None:
        return decided
    a, b = _without_one_name(a, b)
    first, second = read_reals(a), read_reals(b)
    if first and second:
        if first.letter and second.letter and first.letter != second.letter:
            return False
        found = _same_spans(first.spans, second.spans, leaf)
        return leaf(first.text, second.text) if found is None else found
    a, b = _same_comma(a, b), _same_comma(b, a)
    if a == b:
        return True
    left, right = entries_of(a), entries_of(b)
    if depth >= MAX_DEPTH or (len(left.texts) == len(right.texts) == 1 and left.kind == right.kind):
        return leaf(a, b)
    if _RELATION.search(a if len(left.texts) == 1 else b if len(right.texts) == 1 else ""):
        return leaf(a, b)  # an equation or matrix may stand for what it is solved by
    if left.kind and right.kind and left.kind != right.kind:
        return False
    if left.kind in ("", "\\{\\}") and right.kind in ("", "\\{\\}"):
        if left.kind != right.kind:  # a set beside a bare list: twice is once
            return _same_set(tuple(dict.fromkeys(left.texts)), tuple(dict.fromkeys(right.texts)), leaf, depth)
        return _same_set(left.texts, right.texts, leaf, depth)
    if len(left.texts) != len(right.texts):
        return False
    return _all(same(x, y, leaf, depth + 1) for x, y in zip(left.texts, right.texts, strict=True))


@lru_cache(maxsize=4096)
def fast_equal(a: str, b: str) -> bool | None:
    """Whether answer `b` equals reference `a`; None where only `slow_equal` can tell."""
    if a == b and a.strip():
        return True
    if len(a) > 2 * MAX_ANSWER_CHARS or len(b) > 2 * MAX_ANSWER_CHARS:
        return False
    return same(normalise(a), normalise(b), _by_value)


def exact_equal(a: str, b: str) -> bool:
    """Whether two answers are the same text, spacing at the ends and runs of white space apart."""
    return a == b or _SPACES.sub(" ", a).strip() == _SPACES.sub(" ", b).strip()


def _by_value(a: str, b: str) -> bool | None:
    """What two plain numbers tell; None for other formulas."""
    first, second = read_number(a), read_number(b)
    return same_number(first, second) if first and second else None


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    found: bool | None = True
    for verdict in verdicts:
        if verdict is False:
            return False
        found = found if verdict else None
    return found


def _same_set(first: tuple[str, ...], second: tuple[str, ...], leaf: Leaf, depth: int) -> bool | None:
    """Whether each entry has a counterpart of its own, in any order."""
    if len(first) != len(second):
        return False
    left, certain = list(second), True
    for x in first:
        verdicts = [same(x, y, leaf, depth + 1) for y in left] if x not in left else []
        if x in left:
            left.remove(x)
        elif True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            certain = False
        else:
            return False
    return True if certain else None


def _same_spans(first: tuple[Span, ...], second: tuple[Span, ...], leaf: Leaf) -> bool | None:
    """Whether unions of intervals agree piece by piece; None where they do not (pieces may touch or overlap)."""
    if len(first) != len(second) or any(x.brackets != y.brackets for x, y in zip(first, second, strict=True)):
        return None if len(first) + len(second) > 2 else False
    ends = [pair for x, y in zip(first, second, strict=True) for pair in ((x.low, y.low), (x.high, y.high))]
    verdict = _all(same(x, y, leaf, MAX_DEPTH) for x, y in ends)
    return verdict if verdict or len(first) == 1 else None


def _without_one_name(a: str, b: str) -> tuple[str, str]:
    r"""Both without `x=`, `f(x)=` … where one has it and the other is no relation, or both have the same."""
    (first, x), (second, y) = split_name(a), split_name(b)
    if first and second:
        return (x, y) if first == second else (a, b)
    if first and not _RELATION.search(b):
        return x, b
    if second and not _RELATION.search(a):
        return a, y
    return a, b


def _same_comma(text: str, other: str) -> str:
    """`3,14` as `3.14` where the other side is a number with a decimal point."""
    comma = _COMMA.fullmatch(text)
    return f"{comma.group(1)}.{comma.group(2)}" if comma and _DECIMAL.fullmatch(other) else text


def _scaled(a: str, b: str) -> list[tuple[str, str]]:
    """What `5million` may be held against: 5000000, or 5 where the other side leaves the word out; [] without any."""
    first, second = _SCALED.fullmatch(a), _SCALED.fullmatch(b)

    def whole(match: re.Match[str]) -> str:
        value = format(Decimal(match.group(1)).scaleb(_SCALES[match.group(2)]), "f")
        return value.rstrip("0").rstrip(".") if "." in value else value

    if first and second:
        return [(whole(first), whole(second))]
    if first:
        return [(whole(first), b), (first.group(1), b)]
    return [(a, whole(second)), (a, second.group(1))] if second else []


def _named(a: str, b: str) -> bool | None:
    """The word of points' names and numerals' bases, where both sides have them."""
    first, second = _POINTS.fullmatch(a.replace(" ", "")), _POINTS.fullmatch(b.replace(" ", ""))
    if first and second:
        (kind, x), (other, y) = first.groups(), second.groups()
        turned = x[::-1] if kind in ("angle", "measuredangle", "overline", "arc", "widehat") else x
        return kind == other and (y in (x, turned) if kind != "triangle" else sorted(x) == sorted(y))
    if ("'" in a) != ("'" in b):
        return False  # a derivative and a function: the library drops the prime
    left, right = _NUMERAL.fullmatch(a), _NUMERAL.fullmatch(b)
    if left and right:
        return left.groups() == right.groups()
    return None


@lru_cache(maxsize=4096)
def _tokens(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(_ONE_IN_BRACES.sub(r"\1\2", text)))


def _words(a: str, b: str) -> bool | None:
    """Whether two texts are the same word, where at least one is marked as text or both look like words."""
    first, second = _MARKED_TEXT.fullmatch(a), _MARKED_TEXT.fullmatch(b)
    left = _WORD.fullmatch((first.group(1) if first else a).strip())
    right = _WORD.fullmatch((second.group(1) if second else b).strip())
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
