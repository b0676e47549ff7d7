"""A curriculum over any problem source: what was met before comes again while it can still teach.

    next_problem -> with chance fresh_frac, or where the band is empty: the source's next problem
                 -> else one of those met whose running pass rate lies in the band
    observe(problem, rewards) -> its pass rate moves

It is keyed by the single problem, not by a class of them: an endless stream such as the chains has no epochs, so what
was drawn once is remembered (up to `memory` problems) and drawn from memory. A fresh problem has no pass rate yet; the
share of fresh draws is what keeps the memory filled.

Invariants: the draw depends on seed, number of draws and memory alone, so a source restored from `state()` goes on with
the problem that would have come next; a repeated problem is not drawn again before its answers were observed or it was
given up.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from capo_ray.config.curriculum import CurriculumConfig
from capo_ray.problems.saved import read_problem
from capo_ray.problems.streams import ProblemSource
from capo_ray.types import Problem


@dataclass(frozen=True, slots=True)
class _Met:
    """A problem met before: its running pass rate, and whether a group is at it now."""

    problem: Problem
    rate: float
    away: bool = False


class Curriculum:
    """A `ProblemSource` around another."""

    def __init__(self, source: ProblemSource, config: CurriculumConfig, seed: int) -> None:
        self._source, self._config, self._seed = source, config, seed
        self._draws = self._repeats = 0
        self._met: dict[str, _Met] = {}  # by problem id, that of the oldest answers first

    def next_problem(self, progress: float = 0.0) -> Problem:
        rng = random.Random(f"curriculum/{self._seed}/{self._draws}")
        self._draws += 1
        fresh = rng.random() < self._config.fresh_frac
        band, weights = self._band(progress)
        if fresh or not band:
            problem = self._source.next_problem(progress)
        else:
            self._repeats += 1
            (met,) = rng.choices(band, weights)
            problem = met.problem
        if problem.id in self._met:
            self._met[problem.id] = replace(self._met[problem.id], away=True)
        return problem

    def observe(self, problem: Problem, rewards: Sequence[int]) -> None:
        met = self._met.pop(problem.id, None)
        if rewards:
            rate, weight = sum(rewards) / len(rewards), self._config.newest_weight
            met = _Met(problem, rate if met is None else met.rate + weight * (rate - met.rate))
        if met is not None:
            self._met[problem.id] = replace(met, away=False)
        while len(self._met) > self._config.memory:
            del self._met[next(iter(self._met))]

    def figures(self) -> dict[str, float]:
        rates = [met.rate for met in self._met.values()]
        return {
            "curriculum/known_problems": float(len(rates)),
            "curriculum/pass_rate_mean": sum(rates) / len(rates) if rates else float("nan"),
            "curriculum/repeated_frac": self._repeats / max(1, self._draws),
        }

    def state(self) -> dict[str, Any]:
        met = [[asdict(m.problem), m.rate, m.away] for m in self._met.values()]
        own = {"seed": self._seed, "draws": self._draws, "repeats": self._repeats, "met": met}
        return {**self._source.state(), "curriculum": own}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a cursor; one of a run without a curriculum starts with an empty memory."""
        self._source.restore(state)
        if own := state.get("curriculum"):
            self._seed, self._draws, self._repeats = own["seed"], own["draws"], own["repeats"]
            self._met = {p["id"]: _Met(read_problem(p), rate, away) for p, rate, away in own["met"]}

    def _band(self, progress: float) -> tuple[list[_Met], list[float]]:
        """The problems that may be repeated now, and how often each is to be drawn."""
        config = self._config
        late = progress >= config.late_from
        low, high = (config.late_low, config.late_high) if late else (config.low, config.high)
        band = [met for met in self._met.values() if not met.away and low < met.rate < high]
        return band, [1.0 if late else 1.0 - met.rate for met in band]
