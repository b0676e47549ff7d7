"""Exact values of small arithmetic expressions, by a parser of our own: no `eval`, and sizes bounded everywhere.

sum := product (('+'|'-') product)*      product := power (('*'|'/'|adjacent parenthesis) power)*
power := unary ('^' unary)?              unary := ('+'|'-')* atom        atom := number '%'? | '(' sum ')'
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

MAX_TOKENS = 120
MAX_DEPTH = 24
MAX_EXPONENT = 64
MAX_BITS = 2048

Token = Fraction | str
"""A number, or one of `+ - * / ^ ( ) %`."""


class NotArithmetic(ValueError):
    """The tokens are no expression, or one too large to be worth a value."""


def evaluate(tokens: Sequence[Token], *, percent: bool) -> Fraction:
    """The exact value; `percent`: whether `%` divides by 100 or is only a unit. Raises `NotArithmetic`."""
    if len(tokens) > MAX_TOKENS:
        raise NotArithmetic(f"more than {MAX_TOKENS} tokens")
    reader = _Reader(tokens, percent)
    value = reader.sum()
    if reader.at != len(tokens):
        raise NotArithmetic(f"unexpected {tokens[reader.at]}")
    return value


class _Reader:
    def __init__(self, tokens: Sequence[Token], percent: bool) -> None:
        self.tokens, self.percent = tokens, percent
        self.at = self.depth = 0

    def peek(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def sum(self) -> Fraction:
        value = self.product()
        while (op := self.peek()) in ("+", "-"):
            self.at += 1
            right = self.product()
            value = _bounded(value + right if op == "+" else value - right)
        return value

    def product(self) -> Fraction:
        value = self.power()
        while (op := self.peek()) in ("*", "/", "("):
            self.at += op != "("
            right = self.power()
            if op == "/" and right == 0:
                raise NotArithmetic("division by zero")
            value = _bounded(value / right if op == "/" else value * right)
        return value

    def power(self) -> Fraction:
        negative = False
        while (sign := self.peek()) in ("+", "-"):
            negative ^= sign == "-"
            self.at += 1
        value = self.atom()
        if self.peek() == "^":
            self.at += 1
            value = _power(value, self.exponent())
        return -value if negative else value

    def exponent(self) -> Fraction:
        negative = self.peek() == "-"
        self.at += negative
        value = self.atom()
        return -value if negative else value

    def atom(self) -> Fraction:
        token = self.peek()
        self.at += 1
        if isinstance(token, Fraction):
            if self.peek() == "%":
                self.at += 1
                return token / 100 if self.percent else token
            return token
        if token != "(":
            raise NotArithmetic(f"unexpected {token}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotArithmetic(f"more than {MAX_DEPTH} parentheses deep")
        value = self.sum()
        if self.peek() != ")":
            raise NotArithmetic("parenthesis not closed")
        self.at += 1
        self.depth -= 1
        return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT or (base == 0 and exponent < 0):
        raise NotArithmetic(f"power {exponent} not taken")
    _bounded(base, MAX_BITS // MAX_EXPONENT)
    return _bounded(base ** int(exponent))


def _bounded(value: Fraction, bits: int = MAX_BITS) -> Fraction:
    if value.numerator.bit_length() > bits or value.denominator.bit_length() > bits:
        raise NotArithmetic("number too large")
    return value
