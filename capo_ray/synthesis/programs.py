"""A worked problem whose calculations are marked (GSM8K's `<<48/2=24>>`) as a program of the numbers in its question.

    question   "Natalia sold 48 clips in April and half as many in May …"        inputs: 48
    mark 0     48/2=24        48 an input, 2 a constant
    mark 1     48+24=72       24 the result of mark 0
    answer     72             the result of the last mark

An input is a number of the question that a mark calculates with; other numbers stay as they are. What could stand for
two things is not replaced, or the problem is refused: a wrong program makes wrong problems that look right.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil

from capo_ray.config.data import NUMBER_SPAN
from capo_ray.critics.expressions import NotArithmetic, Token, evaluate

MAX_TRIES = 60
MIN_INPUT, MAX_INPUT = 3, 99_999
FEW = 4
"""Multiples of a power of ten among which a number is drawn without those of its half."""
MARK = re.compile(r"<<([^<>=]{1,80})=([^<>=]{1,30})>>")
PLAIN = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+"
NUMBER = re.compile(PLAIN)
# A number that the words of the question stand for as well: which of the two a mark means cannot be told.
STANDS_FOR = {
    3: r"\b(?:three|thrice|triple|third)",
    4: r"\b(?:four|quarter|seasons?)",
    5: r"\b(?:five|fifth|nickels?|weekdays?)",
    6: r"\bsix|half a dozen",
    7: r"\b(?:seven|weeks?|weekly|daily|every day|each day)",
    8: r"\beight",
    9: r"\bnine",
    10: r"\b(?:ten|dimes?|decades?)\b",
    12: r"\b(?:twelve|dozens?|months?|monthly|years?|yearly|annual|foot|feet|inch(?:es)?|noon)",
    16: r"\b(?:ounces?|pounds?|oz)\b",
    24: r"\b(?:hours?|days?|daily)",
    25: r"\bquarters?\b",
    30: r"\b(?:months?|half an hour)",
    36: r"\b(?:yards?|inch(?:es)?)",
    52: r"\b(?:weeks?|years?)",
    60: r"\b(?:minutes?|seconds?|hours?|hourly)",
    100: r"%|\b(?:percent|cents?|dollars?|cm|centimeters?|meters?|century|hundred)",
    365: r"\b(?:years?|days?)",
    1000: r"\b(?:thousand|kilo|grams?|meters?|kg|km|liters?|ml)",
}


class NoProgram(ValueError):
    """A worked problem that cannot be made again with other numbers; the message says why."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A number in a mark: an input (by its value in the original), the result of an earlier mark, or a constant."""

    kind: str
    value: Fraction
    mark: int = -1


Part = Operand | str


@dataclass(frozen=True, slots=True)
class Program:
    """A worked problem as a function of its inputs; `places`: the spans of inputs in the question, by value."""

    question: str
    solution: str
    marks: tuple[tuple[Part, ...], ...]
    results: tuple[Fraction, ...]
    places: tuple[tuple[int, int, Fraction], ...]

    @property
    def inputs(self) -> tuple[Fraction, ...]:
        """The distinct inputs, the smallest first."""
        return tuple(sorted({value for *_, value in self.places}))

    def run(self, inputs: Mapping[Fraction, Fraction]) -> tuple[Fraction, ...]:
        """The result of each mark; raises `NoProgram` where a calculation has none."""
        results: list[Fraction] = []
        for mark in self.marks:
            tokens: list[Token] = [part if isinstance(part, str) else _value(part, inputs, results) for part in mark]
            try:
                results.append(evaluate(tokens, percent=False))
            except NotArithmetic as error:
                raise NoProgram(str(error)) from None
        return tuple(results)


@dataclass(frozen=True, slots=True)
class Instance:
    """A program with other numbers: its question, its worked solution with marks, and its answer."""

    question: str
    solution: str
    answer: str


def instantiate(program: Program, rng: random.Random, span: float = NUMBER_SPAN) -> Instance | None:
    """The program with other numbers in the same order of size; None where none work out.

    A number is replaced by one of as many digits, a multiple of 5, 10, 100 by such a one; at least one changes. Each
    result is positive and has no more decimals. No number, given or worked out, is more than `span` times larger or
    smaller than in the original.
    """
    inputs, most = program.inputs, Fraction(str(span))
    for _ in range(MAX_TRIES):
        new = _draw(inputs, most, rng)
        drawn = [new[value] for value in inputs]
        if drawn == list(inputs) or any(a >= b for a, b in pairwise(drawn)) or _collides(program, new):
            continue
        try:
            results = program.run(new)
        except NoProgram:
            continue
        alike = all(_as_plain(*both) and _near(*both, most) for both in zip(results, program.results, strict=True))
        if alike and len({*results, *drawn}) == len(results) + len(drawn):
            return _render(program, new, results)
    return None


def solve_again(program: Program, question: str) -> Fraction | None:
    """The answer of a question of this program, from the numbers that stand in it; None of any other question."""
    pattern, at = [], 0
    for start, end, _ in program.places:
        pattern += [re.escape(program.question[at:start]), f"({PLAIN})"]
        at = end
    found = re.fullmatch("".join([*pattern, re.escape(program.question[at:])]), question)
    if found is None:
        return None
    new: dict[Fraction, Fraction] = {}
    for (*_, value), text in zip(program.places, found.groups(), strict=True):
        if new.setdefault(value, exact(text)) != exact(text):
            return None
    try:
        return program.run(new)[-1]
    except NoProgram:
        return None


def _value(part: Operand, inputs: Mapping[Fraction, Fraction], results: Sequence[Fraction]) -> Fraction:
    if part.kind == "input":
        return inputs[part.value]
    return results[part.mark] if part.kind == "result" else part.value


def _draw(inputs: Sequence[Fraction], most: Fraction, rng: random.Random) -> dict[Fraction, Fraction]:
    """A number for each input; among those that go by the same step, in their order of size."""
    by_step: dict[int, list[int]] = {}
    for value in map(int, inputs):
        by_step.setdefault(_step(value, most), []).append(value)
    new: dict[Fraction, Fraction] = {}
    for step, values in by_step.items():
        drawn = sorted(rng.choice(_like(value, step, most)) for value in values)
        new |= zip(map(Fraction, values), map(Fraction, drawn), strict=True)
    return new


def _like(value: int, step: int, most: Fraction) -> range:
    """The multiples of a step with as many digits, at most `most` times larger or smaller."""
    digits = len(str(value))
    low = max(MIN_INPUT, 10 ** (digits - 1), ceil(value / most))
    high = min(10**digits - 1, int(value * most))
    return range(-(-low // step) * step, high + 1, step)


def _step(value: int, most: Fraction) -> int:
    """The power of ten that a number is a multiple of, half of it where that leaves little choice; or 5, or 1."""
    digits = len(str(value))
    for step in (10**k for k in range(digits - 1, 0, -1)):
        if value % step == 0:
            return step if len(_like(value, step, most)) >= FEW else step // 2
    return 5 if value % 5 == 0 and digits > 1 else 1


def _near(new: Fraction, old: Fraction, most: Fraction) -> bool:
    """Whether a result is of the size of the one it stands for, and so about as hard to work out."""
    return old <= new * most and new <= old * most


def _collides(program: Program, new: Mapping[Fraction, Fraction]) -> bool:
    """Whether a new number would stand for two things: itself and what the words of the question say."""
    lowered = program.question.lower()
    words = [STANDS_FOR.get(int(value), "") for old, value in new.items() if value != old]
    return any(word and re.search(word, lowered) for word in words)


def _as_plain(new: Fraction, old: Fraction) -> bool:
    """Whether a result is positive and no harder to write than the one it stands for."""
    decimals = len(_shown(old, False).partition(".")[2])
    return new > 0 and (new * 10**decimals).denominator == 1


def _render(program: Program, new: Mapping[Fraction, Fraction], results: Sequence[Fraction]) -> Instance:
    question, at = [], 0
    for start, end, value in program.places:
        question += [program.question[at:start], _shown(new[value], "," in program.question[start:end])]
        at = end
    swap = {**new, **dict(zip(program.results, results, strict=True))}

    def other(match: re.Match[str]) -> str:
        value = exact(match[0])
        return _shown(swap[value], "," in match[0] or swap[value] >= 10_000) if value in swap else match[0]

    solution = NUMBER.sub(other, program.solution)
    return Instance("".join([*question, program.question[at:]]), solution, _shown(results[-1], False))


def _shown(value: Fraction, commas: bool) -> str:
    """A number as people write it, exactly; a fraction without an end is written as one."""
    if value.denominator == 1:
        return f"{int(value):,}" if commas else str(int(value))
    for places in range(1, 7):
        if (value * 10**places).denominator == 1:
            return f"{float(value):,.{places}f}" if commas else f"{float(value):.{places}f}"
    return f"{value.numerator}/{value.denominator}"


def exact(text: str) -> Fraction:
    """The value of a plain number; raises `NoProgram`."""
    try:
        return Fraction(text.replace(",", "").strip())
    except (ValueError, ZeroDivisionError):
        raise NoProgram(f"{text!r} is no plain number") from None
