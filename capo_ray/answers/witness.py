r"""Numeric values of simple formulas, read without any library: in microseconds enough to see that two answers differ.

Read are numbers, `\pi`, `e`, `i`, a few letters, `+ - *`, `^`, `\frac{}{}`, `\sqrt{}`, parentheses and products without
a sign. A formula with anything else, or one that could be read in two ways (`1/2x`, `2\frac{1}{3}`, `x2`, `f(x)`,
letters that math-verify takes for units; `2(\frac{1}{1})`, which it reads as 3), has no value here. Only differences
are concluded from values, never equality.
"""

from __future__ import annotations

import cmath
import re
from functools import lru_cache

GAP = 1e-3
MAX_CHARS = 200
MAX_DEPTH = 8
LARGEST = 1e12
# letters that are no unit of math-verify's list, each with a value that no simple relation ties to another's
LETTERS = {"x": 1.3718, "y": 0.7345, "z": 2.1937, "k": 1.9231, "n": 0.6173, "p": 1.1279, "q": 2.3317, "r": 0.8369,
           "u": 1.7713, "v": 0.5471, "w": 2.0519, "a": 1.4593, "b": 0.9187, "e": cmath.e, "i": 1j}  # fmt: skip

_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|[a-zA-Z]|\\(?:pi|frac|sqrt|cdot|times)(?![a-zA-Z])|[-+*^(){} ]")
_TOKENS = re.compile(rf"(?:{_TOKEN.pattern})++")
_AMBIGUOUS = re.compile(
    r"[a-zA-Z}] ?\(|(?<!\\sqr)[a-zA-Z)}] ?[0-9]"
    r"|[0-9] ?\\frac|[0-9] +[0-9]|\^[0-9]{2}|[-+*^] ?[-+*^]|\^\("
    r"|\\frac(?!\{)|\\sqrt(?![{0-9])|\\sqrt[0-9]{2}"
)
_LETTERS_TOGETHER = re.compile(r"[a-zA-Z]{2,}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")


class _Unreadable(Exception):
    """The formula is not of the simple kind."""


@lru_cache(maxsize=4096)
def value_of(text: str) -> complex | None:
    """The value of a normalised simple formula, its letters replaced by fixed numbers; None for anything else."""
    if not text or len(text) > MAX_CHARS or _AMBIGUOUS.search(text):
        return None
    if any(not set(pair) <= set("xyz") for pair in _LETTERS_TOGETHER.findall(_COMMAND.sub(" ", text))):
        return None
    if not _TOKENS.fullmatch(text):
        return None
    tokens = [token for token in _TOKEN.findall(text) if token != " "]
    reader = _Reader(tokens)
    try:
        value = reader.sum(0)
    except (_Unreadable, ArithmeticError, ValueError):
        return None
    return value if reader.at_end() and abs(value) < LARGEST else None


def apart(x: complex, y: complex) -> bool:
    """Whether two values are too far from each other for any rounding."""
    return abs(x - y) > GAP * (1 + max(abs(x), abs(y)))


def _near_fraction(value: complex) -> bool:
    """Whether a value may be a fraction with a small denominator."""
    return value.imag == 0 and any(abs(value.real * k - round(value.real * k)) < 1e-6 for k in range(1, 61))


class _Reader:
    """Recursive descent over the tokens; every method returns the value of what it read."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._place = tokens, 0

    def at_end(self) -> bool:
        return self._place == len(self._tokens)

    def sum(self, depth: int) -> complex:
        if depth > MAX_DEPTH:
            raise _Unreadable
        sign = -1 if self._take("-") else 1
        total = sign * self._product(depth)
        while not self.at_end() and self._tokens[self._place] in "+-":
            sign = 1 if self._next() == "+" else -1
            total += sign * self._product(depth)
        return total

    def _product(self, depth: int) -> complex:
        value = self._power(depth)
        while not self.at_end() and (token := self._tokens[self._place]) not in ("+", "-", ")", "}"):
            if token in ("*", "\\cdot", "\\times"):
                self._place += 1
                value *= self._power(depth)
                continue
            factor = self._power(depth)
            if _near_fraction(factor):  # math-verify takes such products for mixed numbers and adds
                raise _Unreadable
            value *= factor
        return value

    def _power(self, depth: int) -> complex:
        base = self._atom(depth)
        if not self._take("^"):
            return base
        exponent = self._group(depth) if self._tokens[self._place :][:1] == ["{"] else self._atom(depth)
        if abs(exponent) > 64:
            raise _Unreadable
        return complex(base**exponent)

    def _atom(self, depth: int) -> complex:
        token = self._next()
        if token[0].isdigit():
            return complex(float(token))
        if token == "(":
            value = self.sum(depth + 1)
            self._expect(")")
            return value
        if token == "\\pi":
            return complex(cmath.pi)
        if token == "\\frac":
            return self._group(depth) / self._group(depth)
        if token == "\\sqrt":
            return cmath.sqrt(self._group(depth) if self._tokens[self._place :][:1] == ["{"] else float(self._next()))
        if token.lower() in LETTERS:
            return complex(LETTERS[token.lower()])
        raise _Unreadable

    def _group(self, depth: int) -> complex:
        self._expect("{")
        value = self.sum(depth + 1)
        self._expect("}")
        return value

    def _next(self) -> str:
        if self.at_end():
            raise _Unreadable
        self._place += 1
        return self._tokens[self._place - 1]

    def _take(self, token: str) -> bool:
        if not self.at_end() and self._tokens[self._place] == token:
            self._place += 1
            return True
        return False

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise _Unreadable
