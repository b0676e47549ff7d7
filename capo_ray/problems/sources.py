"""Problem sources: an endless, repeatable stream of training problems with a JSON-able cursor, and a held-out list."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from capo_ray.config.sections import DataConfig
from capo_ray.problems.chains import make_problem
from capo_ray.problems.curriculum import Curriculum
from capo_ray.problems.rows import BadRow, RowReport, read_rows, text_of
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem

HELD_OUT_SEED = 0  # the same held-out chains for every run seed, so that runs compare
BOXED = "\\boxed"  # as answer_marker: the answer is the content of the last box, the column the reference solution
_CALCULATOR_MARKS = re.compile(r"<<[^<>]*>>")


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


class ChainSource(PlainSource):
    """Chains drawn by (seed, index); they never run out, so the epoch stays 0."""

    def __init__(self, num_operations: int, seed: int) -> None:
        self._num_operations, self._seed, self._index = num_operations, seed, 0

    def next_problem(self, progress: float = 0.0) -> Problem:
        problem = make_problem(self._seed, self._index, self._num_operations)
        self._index += 1
        return problem

    def state(self) -> dict[str, int]:
        return {"seed": self._seed, "epoch": 0, "index": self._index}

    def restore(self, state: Mapping[str, int]) -> None:
        self._seed, self._index = int(state["seed"]), int(state["index"])


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


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Training problems, held-out problems, and the bad rows that were left out (`place: reason`)."""

    train: ProblemSource
    _held_out: Sequence[Problem] | None  # None: chains, drawn on demand
    bad_rows: tuple[str, ...] = ()
    chain_steps: int = 0

    def held_out(self, n: int) -> list[Problem]:
        """The first n held-out problems, fewer where there are fewer; the same for every run seed."""
        if self._held_out is None:
            return [make_problem(HELD_OUT_SEED, i, self.chain_steps, "held_out") for i in range(n)]
        return list(islice(self._held_out, n))


def build_problems(config: DataConfig, seed: int) -> ProblemSet:
    """The problems of a run; RunFailed with a sentence on a missing file, empty data or too many bad rows."""
    if config.kind == "chains":
        chains = ChainSource(config.chain_steps, seed)
        return ProblemSet(_with_curriculum(chains, config, seed), None, chain_steps=config.chain_steps)
    report = RowReport(config.max_bad_rows)
    rows = _read_problems(config, config.path, config.split, report)
    if config.eval_path:
        split = config.eval_split if config.kind == "hub" else config.split
        held_out = _read_problems(config, config.eval_path, split, report)
    else:
        cut = len(rows) - round(len(rows) * config.eval_frac)
        rows, held_out = rows[:cut], rows[cut:]
    known = {problem.prompt for problem in held_out}
    train = [problem for problem in rows if problem.prompt not in known]
    if not train:
        raise RunFailed(
            f"expected training problems in {config.path}, got none after {len(report.bad)} bad and "
            f"{len(held_out)} held-out rows: check data.path, data.eval_frac and the column names"
        )
    return ProblemSet(_with_curriculum(RowSource(train, seed), config, seed), held_out, tuple(report.bad))


def _with_curriculum(source: ProblemSource, config: DataConfig, seed: int) -> ProblemSource:
    return source if config.curriculum.kind == "none" else Curriculum(source, config.curriculum, seed)


def _read_problems(config: DataConfig, path: str, split: str, report: RowReport) -> list[Problem]:
    """The problems of one file or split, in its order."""
    assert config.kind != "chains"
    source = Path(path).stem or path
    problems = []
    for place, row in read_rows(config.kind, path, split, report):
        try:
            problems.append(to_problem(config, row, f"{source}-{place.rpartition(':')[2]}", source))
        except BadRow as error:
            report.add(place, str(error))
    return problems


def to_problem(config: DataConfig, row: Mapping[str, Any], problem_id: str, source: str) -> Problem:
    """The problem of a row; what stands before the answer marker is its reference solution (`<<…>>` removed)."""
    question = text_of(dict(row), config.question_column).strip()
    answer = text_of(dict(row), config.answer_column)
    if not config.answer_marker:
        return Problem(problem_id, question, answer.strip(), None, source)
    if config.answer_marker == BOXED:
        return Problem(problem_id, question, last_boxed(answer), answer.strip(), source)
    before, mark, after = answer.rpartition(config.answer_marker)
    if not mark or not after.strip():
        raise BadRow(
            f"expected an answer after {config.answer_marker!r} in {config.answer_column!r}, got {answer[-40:]!r}"
        )
    solution = _CALCULATOR_MARKS.sub("", before).strip()
    return Problem(problem_id, question, after.strip(), solution or None, source)


def last_boxed(text: str) -> str:
    """The content of the last `\\boxed{…}` of a text, inner braces balanced; raises BadRow where there is none."""
    _, mark, after = text.rpartition(BOXED + "{")
    depth = 1
    for index, character in enumerate(after if mark else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0 and after[:index].strip():
            return after[:index].strip()
    raise BadRow(f"expected an answer in {BOXED}{{…}}, got {text[-40:]!r}")
