"""Finds the arithmetic that a text claims, `a op b = c` in any dress, and says whether it holds.

    text -> annotations <<…>> and plain lines -> LaTeX to plain -> words, numbers, operators -> sides of `=` -> values

It would rather pass over a claim than call a right one wrong: a variable, a function, a subscript, a mixed number, an
unknown word that may be an operation ("twice", "squared"), mixed units of one measure, a line that speaks of an error
or a modulus: none of these is checked. A result may be rounded to the digits it shows. Linear time, bounded sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from capo_ray.critics.expressions import NotArithmetic, Token, evaluate
from capo_ray.critics.lexer import MEASURES, pieces_of, to_plain

MAX_CHARS = 20_000
ABOUT = Fraction(1, 1000)
"""How far apart, as a share, two values may be of which a text says that they are about equal."""

# A line with one of these asks, denies or counts in another way.
_OTHER_SENSE = re.compile(
    r"\b(?:wrong|incorrect|mistakes?|errors?|false|not true|isn't|not equal|contradict\w*|instead of|should (?:be|have)"
    r"|mod|remainder|quotient|modulo|pmod|bmod|base)\b|\\equiv|≡",
    re.IGNORECASE,
)
# A text with one of these tries a value that turns out not to fit: its equations are questions.
_TRIED = re.compile(
    r"\(false\)|\bnot satisfied\b"
    r"|\b(?:does|do|did)(?:n['’]t| not| still not)(?: \w+){0,2} (?:work|hold|equal|equate|satisfy|match|add up)\b",
    re.IGNORECASE,
)
_ANNOTATION = re.compile(r"<<([^<>\n]{1,200})>>")
_LINE_HEAD = re.compile(
    r"^[ \t]*(?:[-*•–][ \t]+|\(?[0-9]{1,2}[.)][ \t]+|(?:step|case|part)[ \t]+[0-9]+[ \t]*[-–:.)]+)", re.I | re.M
)


@dataclass(frozen=True, slots=True)
class Claim:
    """One `left = right` in a text; `holds` is None where it could not be checked."""

    text: str
    holds: bool | None


@dataclass
class _Side:
    """What stands on one side of an equals sign."""

    tokens: list[Token] = field(default_factory=list)
    spelled: list[str] = field(default_factory=list)
    units: set[str] = field(default_factory=set)
    unknown: bool = False
    loose: bool = False
    """An operation in words ("20 times 2"), which may not have been meant as one."""
    cut: bool = False
    """Whether a parenthesis closed that did not open here."""
    decimals: int = 0
    """Decimals of the last number."""

    @property
    def is_number(self) -> bool:
        return len([t for t in self.tokens if t not in ("(", ")", "%", "+", "-")]) == 1

    @property
    def dangling(self) -> bool:
        """Whether it ends in an operator."""
        return bool(self.tokens) and self.tokens[-1] in ("+", "-", "*", "/", "^")

    def __bool__(self) -> bool:
        return any(isinstance(t, Fraction) for t in self.tokens)


def check_claims(text: str, modulus: int = 0) -> tuple[Claim, ...]:
    """The claims found, in order; with a `modulus`, equality is of integers modulo it."""
    text = text[:MAX_CHARS]
    if not modulus and _TRIED.search(text):
        return ()
    found = [claim for match in _ANNOTATION.finditer(text) for claim in _claims_of_line(match.group(1), modulus)]
    plain = _LINE_HEAD.sub("", _ANNOTATION.sub("", text))
    for line in plain.split("\n"):
        if modulus or not _OTHER_SENSE.search(line):
            found += _claims_of_line(to_plain(line), modulus)
    return tuple(found)


def _claims_of_line(line: str, modulus: int) -> Iterator[Claim]:
    for chain in _chains(line):
        for (left, sign, right), rest in zip(chain, [*chain[1:], None], strict=True):
            if not left or not right or (left.is_number and right.is_number):
                continue
            follows = rest is not None
            spelled = f"{' '.join(left.spelled)} {sign} {' '.join(right.spelled)}"
            yield Claim(spelled, _holds(left, sign, right, modulus, follows))


def _holds(left: _Side, sign: str, right: _Side, modulus: int, follows: bool) -> bool | None:
    """Whether the two sides agree under some fair reading; None where one has no value."""
    if left.unknown or right.unknown:
        return None
    percent_readings = (True, False) if "%" in left.tokens or "%" in right.tokens else (False,)
    known = False
    for left_percent in percent_readings:
        for right_percent in percent_readings:
            try:
                a = evaluate(left.tokens, percent=left_percent)
                b = evaluate(right.tokens, percent=right_percent)
            except NotArithmetic:
                continue
            known = True
            if _same(a, b, sign, right if right.is_number else None, modulus, per=100 if right_percent else 1):
                return True
    if not known:
        return None
    # "3+4 = 7*2 = 14": a running total, written loosely; each part of it is checked by itself.
    if follows and isinstance(right.tokens[0], Fraction) and _runs_on(left, sign, right, modulus):
        return True
    if sign == "≈" and not right.is_number:
        return None  # a coarser form to go on with: 5508^3 ≈ 5500^3
    if left.loose or right.loose or _is_ambiguous(left) or (left.is_number and left.units):
        return None
    units = left.units | right.units
    if len(units & MEASURES) > 1 or ("$" in units and units & {"cent", "penny", "pennies", "dime", "nickel"}):
        return None
    return False


def _is_ambiguous(side: _Side) -> bool:
    """Whether the side holds a/b/c, which some mean as a/(b/c)."""
    slashes = [place for place, token in enumerate(side.tokens) if token == "/"]
    return any(later - earlier == 2 for earlier, later in pairwise(slashes))


def _runs_on(left: _Side, sign: str, right: _Side, modulus: int) -> bool:
    first = right.tokens[0]
    assert isinstance(first, Fraction)
    return _same(evaluate(left.tokens, percent=False), first, sign, right, modulus)


def _same(a: Fraction, b: Fraction, sign: str, literal: _Side | None, modulus: int, per: int = 1) -> bool:
    """Whether two values agree, a `literal` on the right within its last digit, of which there are `per` to one."""
    if modulus:
        return a.denominator == b.denominator == 1 and (a - b) % modulus == 0
    if a == b:
        return True
    if a.denominator != 1 and abs(a - b) < abs(a) / 10**9:
        return True  # what a floating-point machine made of it
    if sign == "≈" and abs(a - b) < abs(a) * ABOUT:
        return True
    if literal is None:
        return False
    if literal.decimals == 0 and sign != "≈":
        return abs(a - b) * per < Fraction(1, 2)  # rounded to a whole number; a half cut off is a slip
    return abs(a - b) * per < Fraction(1, 10**literal.decimals)  # what it was rounded or cut from


def _chains(line: str) -> Iterator[list[tuple[_Side, str, _Side]]]:
    """Runs of sides joined by equals signs: `a = b = c` gives [(a, =, b), (b, =, c)]."""
    side, before, sign = _Side(), None, ""
    chain: list[tuple[_Side, str, _Side]] = []
    for kind, text in pieces_of(line):
        if kind == "equals":
            side = _trimmed(side, keep_right=True)
            side.unknown = side.unknown or side.cut  # it closes what another clause or equation opened: P(X=4) = 3
            if before is not None:
                chain.append((before, sign, side))
            side, before, sign = _Side(), side, text
            continue
        if kind == "asked":
            side.unknown, kind = True, "break"
        if kind == "break" or (kind == "restart" and (side or side.unknown)):
            if before is not None:
                chain.append((before, sign, _trimmed(side, keep_right=False)))
            if chain:
                yield chain
            # Behind an operator a formula goes on whose beginning was words: (coins so far) × (1/2 = …
            side, before, sign, chain = _Side(unknown=side.dangling), None, "", []
        if kind not in ("break", "restart"):
            _put(side, kind, text)
    if before is not None:
        chain.append((before, sign, _trimmed(side, keep_right=False)))
    if chain:
        yield chain


def _put(side: _Side, kind: str, text: str) -> None:
    if kind == "unit":
        side.units.add(text)
        return
    if kind == "unknown":
        side.unknown = True
        return
    if kind == "loose":
        side.loose = True
        return
    if kind == "number":
        side.tokens.append(Fraction(text.replace(",", "")))
        side.decimals = len(text.partition(".")[2])
    else:
        side.tokens.append(text)
    side.spelled.append(text)


def _trimmed(side: _Side, *, keep_right: bool) -> _Side:
    """The side without parentheses that opened before it or close after it ("(so 3+4 = 7)")."""
    opened: list[int] = []
    for place, token in enumerate(side.tokens):
        if token == "(":
            opened.append(place)
        elif token == ")":
            if not opened:
                side.tokens, side.spelled, side.cut = side.tokens[:place], side.spelled[:place], True
                return side
            opened.pop()
    if keep_right and opened:
        side.tokens, side.spelled = side.tokens[opened[-1] + 1 :], side.spelled[opened[-1] + 1 :]
    return side
