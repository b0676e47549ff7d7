r"""The values of simple constants, `-\frac{3\sqrt{2}}{2}+2^3`, read without any library.

Read are numbers, `\pi`, `+ - *`, `^`, `\frac{}{}`, `\sqrt{}`, parentheses and products without a sign. A formula with
anything else, or one that could be read in two ways (`2\frac{1}{3}`, `2(\frac{1}{1})`, which math-verify reads as 3),
has no value here.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache

MAX_CHARS = 200
MAX_DEPTH = 8
MAX_POWER = 64
LARGEST = 1e12

_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|\\(?:pi|frac|sqrt|cdot|times)(?![a-zA-Z])|[-+*^(){} ]")
_TOKENS = re.compile(rf"(?:{_TOKEN.pattern})++")
_AMBIGUOUS = re.compile(
    r"[a-z}] ?\(|(?<!\\sqr)[a-z)}] ?[0-9]"
    r"|[0-9] ?\\frac|[0-9] +[0-9]|\^[0-9]{2}|[-+*^] ?[-+*^]|\^\("
    r"|\\frac(?!\{)|\\sqrt(?![{0-9])|\\sqrt[0-9]{2}"
)


class _Unreadable(Exception):
    """The formula is not of the simple kind."""


@lru_cache(maxsize=4096)
def value_of(text: str) -> float | None:
    """The value of a normalised simple constant; None for anything else."""
    if len(text) > MAX_CHARS or _AMBIGUOUS.search(text) or not _TOKENS.fullmatch(text):
        return None
    reader = _Reader([token for token in _TOKEN.findall(text) if token != " "])
    try:
        value = reader.sum(0)
    except (_Unreadable, ArithmeticError, ValueError):
        return None
    return value if reader.ahead is None and abs(value) < LARGEST else None


def _near_fraction(value: float) -> bool:
    """Whether a value may be a fraction with a small denominator."""
    return any(abs(value * k - round(value * k)) < 1e-6 for k in range(1, 61))


class _Reader:
    """Recursive descent over the tokens; every method returns the value of what it read."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._place = tokens, 0

    @property
    def ahead(self) -> str | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def sum(self, depth: int) -> float:
        if depth > MAX_DEPTH:
            raise _Unreadable
        total = -self._product(depth) if self._take("-") else self._product(depth)
        while self.ahead in ("+", "-"):
            total += self._product(depth) if self._next() == "+" else -self._product(depth)
        return total

    def _product(self, depth: int) -> float:
        value = self._power(depth)
        while self.ahead not in (None, "+", "-", ")", "}"):
            signed = self._take("*") or self._take("\\cdot") or self._take("\\times")
            factor = self._power(depth)
            if not signed and _near_fraction(factor):  # math-verify takes such products for mixed numbers and adds
                raise _Unreadable
            value *= factor
        return value

    def _power(self, depth: int) -> float:
        base = self._atom(depth)
        if not self._take("^"):
            return base
        exponent = self._group(depth) if self.ahead == "{" else self._atom(depth)
        if abs(exponent) > MAX_POWER:
            raise _Unreadable
        return math.pow(base, exponent)

    def _atom(self, depth: int) -> float:
        token = self._next()
        if token[0].isdigit():
            return float(token)
        if token == "(":
            return self._closed(")", depth)
        if token == "\\pi":
            return math.pi
        if token == "\\frac":
            return self._group(depth) / self._group(depth)
        if token == "\\sqrt":
            return math.sqrt(self._group(depth) if self.ahead == "{" else float(self._next()))
        raise _Unreadable

    def _group(self, depth: int) -> float:
        if not self._take("{"):
            raise _Unreadable
        return self._closed("}", depth)

    def _closed(self, end: str, depth: int) -> float:
        value = self.sum(depth + 1)
        if not self._take(end):
            raise _Unreadable
        return value

    def _next(self) -> str:
        token = self.ahead
        if token is None:
            raise _Unreadable
        self._place += 1
        return token

    def _take(self, token: str) -> bool:
        taken = self.ahead == token
        self._place += taken
        return taken
