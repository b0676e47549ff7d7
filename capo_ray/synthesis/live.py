"""A run's problems made as they are asked for: programs with other numbers, each filtered, without an end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from capo_ray.problems.streams import PlainSource
from capo_ray.protocols import RunFailed
from capo_ray.synthesis.candidates import instance
from capo_ray.synthesis.filters import Filters, Held, derived_agreement, plain_solution
from capo_ray.synthesis.programs import Program
from capo_ray.synthesis.reading import read_programs
from capo_ray.types import Problem

MAX_MISSES = 1000
"""Candidates in a row of which none is kept; then there is nothing to train on."""


class ProgramSource(PlainSource):
    """Candidates by (seed, index), those that the filters keep; a cursor of the index alone."""

    def __init__(self, programs: Sequence[tuple[str, Program]], filters: Filters, seed: int, span: float) -> None:
        self._programs, self._filters, self._seed, self._span, self._index = programs, filters, seed, span, 0

    def next_problem(self, progress: float = 0.0) -> Problem:
        for number in range(self._index, self._index + MAX_MISSES):
            one = instance(self._programs, self._seed, number, self._span)
            if one is not None and not self._filters.refusal(one):
                self._index = number + 1
                solution = plain_solution(one.solution, one.answer)
                return Problem(f"synthetic-{self._seed}-{number}", one.question, one.answer, solution, "synthetic")
        raise RunFailed(f"data.kind=synthetic: none of {MAX_MISSES} candidates in a row was kept; give more templates")

    def state(self) -> dict[str, int]:
        return {"seed": self._seed, "epoch": 0, "index": self._index}

    def restore(self, state: Mapping[str, int]) -> None:
        self._seed, self._index = int(state["seed"]), int(state["index"])


def program_source(
    path: str, worked: Sequence[tuple[str, str]], held_out: Iterable[str], seed: int, span: float
) -> ProgramSource:
    """The source of these worked problems, with `span` as `data.number_span`; raises `RunFailed` without a program."""
    programs = read_programs("row", worked)
    if not programs:
        raise RunFailed(
            f"data.kind=synthetic: expected worked problems with calculations marked <<a*b=c>> and an answer after ####"
            f" in {path}, got none among {len(worked)}; see docs/synthesize.md"
        )
    held = Held()
    held.add(held_out)
    filters = Filters(held, derived_agreement)
    filters.know(question for question, _ in worked)
    return ProgramSource(programs, filters, seed, span)
