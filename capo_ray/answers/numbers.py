r"""Plain numbers: integers, decimals, simple fractions; with thousands marks, percent, unit text or `x=` around them.

A number is read here only where math-verify reads the same value; everything else is None and left to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from capo_ray.answers.constants import value_of
from capo_ray.answers.spelling import normalise

MAX_DIGITS = 100
TINY, TINY_RATIO = Fraction(1, 1000), Fraction(1, 10**4)
FLOAT_DIGITS = 15  # what a 53-bit float keeps; beyond it the library's rounding is its own affair

_UNIT = re.compile(r"[ ]?\\(?:text|mbox|mathrm)\{[ ]*(?!percent|pct|and\b|or\b)[a-zA-Z ./]+\}(?:\^[0-9]|\^\{[0-9]\})?$")
_DEGREES = re.compile(r"(?:\^\\circ|\^\{\\circ\}|°)$")
_VARIABLE = re.compile(r"[xyzabcnkmrt]=(?!.*=)")
_PERCENT = re.compile(r"[ ]?\\?%$")
_INTEGER = re.compile(r"-?(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)")
_DECIMAL = re.compile(r"-?(?:(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)?\.[0-9]+)")
_SLASH = re.compile(r"(-?[0-9]+)/([0-9]+)")
_FRAC = re.compile(
    r"(-?)\\frac(?:\{(-?[0-9]+)\}\{([0-9]+)\}|[ ]?([0-9])[ ]?([0-9])|\{([0-9]+)\}([0-9])|[ ]?([0-9])\{([0-9]+)\})"
)
_SCIENTIFIC = re.compile(r"(-?)(?:([0-9]{1,20}(?:\.[0-9]{1,20})?)(?:\\times|\\cdot|\*))?10\^\{?(-?[0-9]{1,3})\}?")
_ABOUT = re.compile(r"\\(?:approx|simeq|sim)(?![a-zA-Z]) ?|≈ ?")
_AROUND_TIMES = re.compile(r" ?(\\(?:times|cdot)) ?(?=10\^)")
_SYMBOL = (
    r"(?:\\(?:mathrm|text|mbox)\{[^{}]{1,40}\}|(?:\\mu ?|[kmMGcnpμµ])?(?:Pa|Hz|eV|mol|cal|\\Omega|Ω|[msgNJKWVACLFTH]))"
    r"(?:\^\{?-?[0-9]\}?)?"
)
_SYMBOLS = re.compile(rf"(?<=[0-9}}]) ?{_SYMBOL}(?:(?: ?[/*·]| ?\\cdot ?| ){_SYMBOL}){{0,3}}$")
_MIXED = re.compile(r"(-?)([1-9][0-9]*)[ ]?\\frac\{([0-9]+)\}\{([1-9][0-9]*)\}")


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value; `floating` where math-verify would hold it as a float; `percent` where it is `value` per cent."""

    value: Fraction
    floating: bool = False
    percent: bool = False
    assigned: bool = False


@lru_cache(maxsize=4096)
def read_number(text: str) -> Number | None:
    """The number that a normalised text spells, or None."""
    if len(text) > MAX_DIGITS:
        return None
    percent = assigned = False
    if match := _VARIABLE.match(text):
        text, assigned = text[match.end() :], True
    if match := _PERCENT.search(text):
        text, percent = text[: match.start()], True
    elif match := _DEGREES.search(text) or _UNIT.search(text):
        text = text[: match.start()]
    value = _plain(text)
    if value is None or (percent and assigned):
        return None
    return Number(value[0], value[1], percent, assigned)


def number_of(text: str) -> float | None:
    """The value of an answer as it is spelled, a percentage as its hundredth; None where it is no real number.

    Where nothing but a number is asked for, a letter behind one is a unit, and what is about the answer is meant as it.
    """
    text = _ABOUT.split(_AROUND_TIMES.sub(r"\1", normalise(text)))[-1]
    text = text.rpartition("=")[2] if text.count("=") == 1 else text
    text = _SYMBOLS.sub("", text)
    if number := read_number(text):
        value = number.value / 100 if number.percent else number.value
        return float(value) if abs(value) < 10**300 else None
    return value_of(text)


def _plain(text: str) -> tuple[Fraction, bool] | None:
    """Value and floatness of a bare number."""
    if _INTEGER.fullmatch(text):
        return Fraction(int(text.replace(",", ""))), False
    if _DECIMAL.fullmatch(text):
        return Fraction(text.replace(",", "")), True
    if (match := _SLASH.fullmatch(text)) and int(match.group(2)):
        return Fraction(int(match.group(1)), int(match.group(2))), False
    if match := _FRAC.fullmatch(text):
        sign, *parts = match.groups()
        top, bottom = (int(part) for part in parts if part is not None)
        if bottom == 0:
            return None
        return (-1 if sign else 1) * Fraction(top, bottom), False
    if match := _SCIENTIFIC.fullmatch(text):
        sign, factor, power = match.groups()
        value = Fraction(factor or 1) * Fraction(10) ** int(power)
        return -value if sign else value, "." in (factor or "")
    if (match := _MIXED.fullmatch(text)) and int(match.group(3)) < int(match.group(4)):
        value = int(match.group(2)) + Fraction(int(match.group(3)), int(match.group(4)))
        return -value if match.group(1) else value, False
    return None


def same_number(a: Number, b: Number) -> bool | None:
    """Whether math-verify (floats rounded to 6 decimals) holds two numbers equal, or None near its rounding."""
    if a.assigned and b.assigned:
        return None
    if a.percent != b.percent:
        bare, per = (b, a) if a.percent else (a, b)
        answers = [_same_value(bare, per.value, per.floating), _same_value(bare, per.value / 100, per.floating)]
        return True if True in answers else (None if None in answers else False)
    return _same_value(a, b.value, b.floating)


def _same_value(a: Number, value: Fraction, floating: bool) -> bool | None:
    """As `same_number`, percent apart."""
    if not a.floating and not floating:
        return a.value == value
    largest = max(abs(a.value), abs(value))
    gap = abs(a.value - value)
    if gap == 0:
        return True
    if largest < TINY or largest >= 10**FLOAT_DIGITS:  # where rounding to decimals says nothing: by ratio
        return gap <= largest * TINY_RATIO if largest < TINY else gap * 10**12 <= largest
    return False if gap > Fraction(2, 10**6) + largest / 10**12 else None
