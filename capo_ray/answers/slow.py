"""The slow path: math-verify under the house rules. It may hang or exhaust memory: only call it in a killable child.

math-verify's own time-outs use `signal.alarm`, which works in main threads alone; they are off, the parent keeps time.
Only its LaTeX reader is used: the plain-expression reader ends in sympy's `parse_expr`, which is `eval`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from capo_ray.answers.compare import same
from capo_ray.answers.numbers import read_number, same_number
from capo_ray.answers.refute import numbers_equal, refuted
from capo_ray.answers.spelling import normalise

_PERCENT = re.compile(r" ?\\?%$")


def slow_equal(a: str, b: str) -> bool:
    """Whether answer `b` equals reference `a`: house rules, lists by entry, numbers, percentages, math-verify."""
    return same(normalise(a), normalise(b), _formulas_equal) is True


def _formulas_equal(a: str, b: str) -> bool:
    number, other = read_number(a), read_number(b)
    if number and other and (verdict := same_number(number, other)) is not None:
        return verdict
    first, second = _PERCENT.search(a), _PERCENT.search(b)
    if first and second:
        return library_equal(a[: first.start()], b[: second.start()])
    if first:
        bare = a[: first.start()]
        return library_equal(bare, b) or library_equal(_hundredth(bare), b)
    if second:
        bare = b[: second.start()]
        return library_equal(a, bare) or library_equal(a, _hundredth(bare))
    return library_equal(a, b)


def library_equal(a: str, b: str, shortcut: bool = True) -> bool:
    """math-verify's word alone on two normalised texts; `shortcut` spares it proofs of what numbers show to differ."""
    import math_verify

    first, second = _parsed(a), _parsed(b)
    if not first or not second:
        return False
    if shortcut and (isinstance(first[0], str) or isinstance(second[0], str)):
        return False  # not read: what is compared then is the text up to the first command that it does not know
    if shortcut and refuted(first[0], second[0]):
        return False
    if shortcut and (verdict := numbers_equal(first[0], second[0])) is not None:
        return verdict
    return bool(math_verify.verify(first, second, timeout_seconds=None))


@lru_cache(maxsize=512)
def _parsed(text: str) -> list[Any]:
    """What math-verify reads in a formula; empty where it reads nothing."""
    import math_verify

    config = (math_verify.LatexExtractionConfig(),)
    found: list[Any] = math_verify.parse(f"${text}$", config, parsing_timeout=None)
    return found


def _hundredth(text: str) -> str:
    """The formula of a hundredth of another one; decimals stay decimals, since the library rounds those alone."""
    number = read_number(text)
    if number is None or number.percent or number.assigned:
        return f"\\frac{{{text}}}{{100}}"
    value = number.value / 100
    if not number.floating:
        return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    digits = 1
    while (value * 10**digits).denominator != 1:
        digits += 1
    scaled = str(abs(value * 10**digits).numerator).rjust(digits + 1, "0")
    return f"{'-' if value < 0 else ''}{scaled[:-digits]}.{scaled[-digits:]}"
