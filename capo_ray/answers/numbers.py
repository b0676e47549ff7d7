r"""Plain numbers: integers, decimals, simple fractions; with thousands marks, percent, unit text or `x=` around them.

A number is read here only where math-verify reads the same value; everything else is None and left to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from capo_ray.answers.witness import apart, value_of

MAX_DIGITS = 100
MAX_ENTRIES = 64
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
THOUSANDS = re.compile(r"[0-9],[0-9]{3}(?![0-9])")
_SIGN = re.compile("[-+]")
_MIXED = re.compile(r"([1-9][0-9]*)[ ]?\\frac\{([0-9]+)\}\{([1-9][0-9]*)\}")


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
    if (match := _MIXED.fullmatch(text)) and int(match.group(2)) < int(match.group(3)):
        return int(match.group(1)) + Fraction(int(match.group(2)), int(match.group(3))), False
    return None


def same_entries(a: str, b: str) -> bool | None:
    """As `same_number`, for tuples, intervals, sets, bare lists and single ones, of numbers or simple formulas.

    An entry whose value is in the other list nowhere near decides: equal lists have a counterpart for each.
    """
    first, second = read_list(a), read_list(b)
    if first is None or second is None:
        return None
    lonely = has_loner(first.values, second.values) or has_loner(second.values, first.values)
    if first.values and second.values and lonely:
        return False
    if first.kind != second.kind or len(first.entries) != len(second.entries) or len(first.entries) == 1:
        return None
    pairs = [(read_number(x), read_number(y)) for x, y in zip(first.entries, second.entries, strict=True)]
    return True if all(x and y and _bare(x) and _bare(y) and same_number(x, y) for x, y in pairs) else None


@dataclass(frozen=True, slots=True)
class List:
    r"""A list's brackets ("" for none), its entries and their values: two for `1\pm x`; none where one has no value."""

    kind: str
    entries: tuple[str, ...]
    values: tuple[complex, ...]


@lru_cache(maxsize=4096)
def read_list(text: str) -> List | None:
    """The entries of a list, one entry without brackets included; None where a comma may be part of a number."""
    kind = ""
    for opening, closing in (("(", ")"), ("[", "]"), ("\\{", "\\}")):  # half-open intervals may be empty: not here
        if text.startswith(opening) and text.endswith(closing) and "," in text:
            kind, text = opening + closing, text[len(opening) : -len(closing)]
            break
    if text.count(",") >= MAX_ENTRIES or THOUSANDS.search(text):
        return None
    entries = tuple(re.split(r",\s*", text))
    values: list[complex] = []
    for entry in entries:
        found = _values_of(entry)
        if found is None:
            return List(kind, entries, ())
        values += found
    return List(kind, entries, tuple(values))


def _values_of(entry: str) -> list[complex] | None:
    base, both, change = entry.partition("\\pm")
    if not both:
        value = entry_value(entry)
        return None if value is None else [value]
    centre, width = (entry_value(base.strip()) if base.strip() else 0j), entry_value(change.strip())
    if centre is None or width is None or _SIGN.search(change):
        return None
    return [centre - width, centre + width]


def entry_value(text: str) -> complex | None:
    """The value of one number or simple formula; None for a percentage, an assignment and anything else."""
    number = read_number(text)
    if number is None:
        return value_of(text)
    return complex(number.value) if _bare(number) and abs(number.value) < 10**12 else None


def _bare(number: Number) -> bool:
    return not number.percent and not number.assigned


def has_loner(values: Sequence[complex], others: Sequence[complex]) -> bool:
    """Whether some value is near none of the others."""
    return any(all(apart(x, y) for y in others) for x in values)


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
    if largest >= 10**FLOAT_DIGITS:
        return None
    gap = abs(a.value - value)
    if gap == 0:
        return True if largest < 10**8 and (value * 10**6).denominator == 1 else None
    return False if gap > Fraction(2, 10**6) + largest / 10**12 else None
