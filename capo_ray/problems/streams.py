"""Streams of training problems: endless, repeatable by (seed, epoch, index), with a cursor fit for JSON."""

from __future__ import annotations

import pkgutil
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from capo_ray.config.environment import EnvironmentBase
from capo_ray.problems.chains import make_problem
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem


class ProblemSource(Protocol):
    """An endless stream of training problems."""

    def next_problem(self, progress: float = 0.0) -> Problem:
        """The problem that comes next at this share of the run."""

    def observe(self, problem: Problem, rewards: Sequence[int]) -> None:
        """Learn how a group fared on a problem of this source; `rewards` are the valid ones."""

    def figures(self) -> dict[str, float]:
        """The source's metrics."""

    def state(self) -> dict[str, Any]:
        """The cursor, fit for JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a cursor; raises RunFailed on one that belongs to other data."""


class PlainSource:
    """What sources share that draw by their cursor alone."""

    def observe(self, problem: Problem, rewards: Sequence[int]) -> None:
        """Nothing to learn from."""

    def figures(self) -> dict[str, float]:
        return {}


class DrawnSource(PlainSource):
    """Problems made of (seed, index); they never run out, so the epoch stays 0."""

    def __init__(self, make: Callable[[int, int], Problem], seed: int) -> None:
        self._make, self._seed, self._index = make, seed, 0

    def next_problem(self, progress: float = 0.0) -> Problem:
        problem = self._make(self._seed, self._index)
        self._index += 1
        return problem

    def state(self) -> dict[str, int]:
        return {"seed": self._seed, "epoch": 0, "index": self._index}

    def restore(self, state: Mapping[str, int]) -> None:
        self._seed, self._index = int(state["seed"]), int(state["index"])


class ChainSource(DrawnSource):
    """Chains."""

    def __init__(self, num_operations: int, seed: int) -> None:
        super().__init__(lambda seed, index: make_problem(seed, index, num_operations), seed)


class EnvironmentSource(DrawnSource):
    """Problems that an environment makes of (seed, index, split)."""

    def __init__(self, environment: EnvironmentBase, seed: int) -> None:
        self._kind, self._function = environment.kind, environment.problems
        self._settings = environment.model_dump(mode="json")
        super().__init__(lambda seed, index: self._make_one(seed, index, "train"), seed)

    def held_out(self, seed: int, count: int) -> list[Problem]:
        """The first `count` of the other split."""
        return [self._make_one(seed, i, "held_out") for i in range(count)]

    def _make_one(self, seed: int, index: int, split: str) -> Problem:
        try:
            problem = pkgutil.resolve_name(self._function)(seed, index, split, self._settings)
        except RunFailed:
            raise
        except Exception as error:
            raise RunFailed(
                f"environment={self._kind}: {self._function} raised {type(error).__name__}: {error} for problem {index}"
            ) from error
        if not isinstance(problem, Problem):
            raise RunFailed(
                f"environment={self._kind}: {self._function} must return a Problem (got {type(problem).__name__})"
            )
        return problem


class RowSource(PlainSource):
    """Problems held in memory, shuffled anew each epoch by (seed, epoch)."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self._problems, self._seed = problems, seed
        self._epoch, self._index = 0, 0
        self._order = self._shuffled()

    def next_problem(self, progress: float = 0.0) -> Problem:
        problem = self._problems[self._order[self._index]]
        self._index += 1
        if self._index == len(self._problems):
            self._epoch, self._index = self._epoch + 1, 0
            self._order = self._shuffled()
        return problem

    def state(self) -> dict[str, int]:
        return {"seed": self._seed, "epoch": self._epoch, "index": self._index, "size": len(self._problems)}

    def restore(self, state: Mapping[str, int]) -> None:
        if state["size"] != len(self._problems):
            raise RunFailed(
                f"expected the {state['size']} training problems of the run to resume, got {len(self._problems)}: "
                "give the same data.path and data.eval_path"
            )
        self._seed, self._epoch, self._index = int(state["seed"]), int(state["epoch"]), int(state["index"])
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        order = list(range(len(self._problems)))
        random.Random(f"rows/{self._seed}/{self._epoch}").shuffle(order)
        return order
