"""Candidates: what a generator proposes, before any filter. The generator of this module is the programs themselves."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from capo_ray.config.data import NUMBER_SPAN
from capo_ray.synthesis.programs import Instance, Program, instantiate, solve_again

DRAWS = 20
"""Programs tried for one candidate: some have no other numbers that work out."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposed problem: `number` names it under its seed, `origin` says what it was made from."""

    number: int
    question: str
    solution: str
    """Worked; of a program with its `<<a*b=c>>` marks."""
    answer: str
    origin: str
    derived: str | None = None
    """The answer worked out again from the question alone; None where no program can do that."""


def to_candidate(number: int, origin: str, program: Program, made: Instance) -> Candidate:
    """A candidate, whose question is solved once more from the numbers that stand in it."""
    again = solve_again(program, made.question)
    return Candidate(
        number, made.question, made.solution, made.answer, origin, None if again is None else _plain(again)
    )


def instance(
    programs: Sequence[tuple[str, Program]], seed: int, number: int, span: float = NUMBER_SPAN
) -> Candidate | None:
    """Candidate `number` of a seed, of programs (origin, program) drawn for it; None where none has other numbers."""
    rng = random.Random(f"synthesis/{seed}/{number}")
    for _ in range(DRAWS):
        origin, program = programs[rng.randrange(len(programs))]
        made = instantiate(program, rng, span)
        if made is not None:
            return to_candidate(number, origin, program, made)
    return None


def instances(
    programs: Sequence[tuple[str, Program]], seed: int, num: int, start: int = 0, span: float = NUMBER_SPAN
) -> Iterator[Candidate]:
    """The candidates `start` to `num` of a seed."""
    found = (instance(programs, seed, number, span) for number in range(start, num))
    yield from (candidate for candidate in found if candidate is not None)


def _plain(value: Fraction) -> str:
    return str(int(value)) if value.denominator == 1 else str(float(value))
