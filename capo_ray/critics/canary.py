"""Canaries: solutions whose wrong steps are known, judged now and then, so that a critic that drifts is noticed.

    every N groups -> the cases through the same critic, store left aside -> recall, precision -> alarm

A frozen critic drifts when its weights, its endpoint's model, its rubric or its engine changed behind the run's back.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from capo_ray.critics.quality import step_quality
from capo_ray.protocols import Judge, JudgeRequest, PartLost
from capo_ray.types import Critique, Problem
from capo_ray.votes import voted_steps

SHIPPED = Path(__file__).parent / "canaries.json"
NUM_CHAINS = 12


@dataclass(frozen=True, slots=True)
class CanaryCase:
    """A solution whose wrong steps are known."""

    problem: Problem
    steps: tuple[str, ...]
    wrong: frozenset[int]


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """What a critic made of the canaries; nan where there was nothing to count."""

    recall: float
    precision: float
    invalid_frac: float

    def alarms(self, least: float) -> bool:
        """Whether recall or precision is below `least`, or unknown."""
        return not (self.recall >= least and self.precision >= least)


class JudgeWithStats(Judge, Protocol):
    """A judge that counts."""

    def stats(self) -> dict[str, float]:
        """Its figures."""


def load_cases(path: str, rubric: str) -> tuple[CanaryCase, ...]:
    """The cases of a JSONL file, or those shipped for the rubric; raises `ValueError` naming the line at fault."""
    if path:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        return tuple(_to_case(json.loads(line), n) for n, line in enumerate(lines, start=1) if line.strip())
    if rubric == "compact":
        return tuple(chain_cases(NUM_CHAINS, 6, seed=0))
    rows = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return tuple(_to_case(row, n) for n, row in enumerate(rows, start=1))


def chain_cases(num_cases: int, num_operations: int, seed: int) -> list[CanaryCase]:
    """One-digit chains modulo 10, worked left to right, with wrong results planted in two steps of each."""
    rng = random.Random(seed)
    cases = []
    for case in range(num_cases):
        value = rng.randrange(10)
        operations = [(rng.choice("+-*"), rng.randrange(10)) for _ in range(num_operations)]
        prompt = str(value) + "".join(f"{op}{digit}" for op, digit in operations)
        wrong = frozenset(rng.sample(range(num_operations), 2)) if case % 3 else frozenset[int]()
        steps = []
        for index, (op, digit) in enumerate(operations):
            right = {"+": value + digit, "-": value - digit, "*": value * digit}[op] % 10
            shown = (right + rng.randrange(1, 10)) % 10 if index in wrong else right
            steps.append(f"{value}{op}{digit}={shown}")
            value = shown
        problem = Problem(f"canary-{case}", prompt, "")
        cases.append(CanaryCase(problem, (*steps, f"\\boxed{{{value}}}"), wrong))
    return cases


async def judge_canaries(judge: Judge, cases: Sequence[CanaryCase], num_votes: int, vote: str) -> CanaryReport:
    """The critic's quality on the cases under its vote."""
    answers = await asyncio.gather(
        *(judge.critique(case.problem, [JudgeRequest(case.steps)], num_votes) for case in cases)
    )
    votes: list[tuple[Critique, ...]] = [answer[0] for answer in answers]
    flagged = [
        voted_steps([c.flagged for c in critiques if c.flagged is not None], len(case.steps), vote)
        for critiques, case in zip(votes, cases, strict=True)
    ]
    quality = step_quality(flagged, [case.wrong for case in cases], [len(case.steps) for case in cases])
    told = [c for critiques in votes for c in critiques]
    invalid = sum(not c.valid for c in told) / len(told) if told else math.nan
    return CanaryReport(quality.recall, quality.precision, invalid)


class CanaryWatch:
    """`protocols.Judge`: another judge, with the canaries sent through after every so many groups.

    `canary_judge` is the same critic without a store, which would only repeat what the critic once said.
    """

    def __init__(
        self,
        judge: JudgeWithStats,
        canary_judge: Judge,
        cases: Sequence[CanaryCase],
        *,
        every: int,
        least: float,
        num_votes: int,
        vote: str,
    ) -> None:
        self._judge, self._canary_judge, self._cases = judge, canary_judge, tuple(cases)
        self._every, self._least, self._num_votes, self._vote = every, least, num_votes, vote
        self._groups = 0
        self._report: CanaryReport | None = None

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """The judge's critiques; once every so many groups the canaries are judged beside them."""
        due = self._groups % self._every == 0
        self._groups += 1
        if not due:
            return await self._judge.critique(problem, responses, num_votes)
        answer, _ = await asyncio.gather(self._judge.critique(problem, responses, num_votes), self._look())
        return answer

    async def _look(self) -> None:
        try:
            self._report = await judge_canaries(self._canary_judge, self._cases, self._num_votes, self._vote)
        except PartLost:
            # The group beside it meets the same loss and reports it; the canaries are due again later.
            self._report = None

    def stats(self) -> dict[str, float]:
        """The judge's figures, and the canaries' last."""
        out = self._judge.stats()
        if self._report is not None:
            out["critic/canary_recall_frac"] = self._report.recall
            out["critic/canary_precision_frac"] = self._report.precision
            out["critic/canary_invalid_frac"] = self._report.invalid_frac
            out["critic/canary_alarm"] = float(self._report.alarms(self._least))
        return out


def _to_case(row: object, line: int) -> CanaryCase:
    try:
        assert isinstance(row, dict)
        steps = tuple(str(step) for step in row["steps"])
        wrong = frozenset(int(step) for step in row["wrong_steps"])
        problem = Problem(f"canary-{line}", str(row["question"]), str(row.get("answer", "")), row.get("solution"))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"canary {line}: expected question, steps [texts], wrong_steps [indices] ({error!r})"
        ) from None
    if not steps or not all(0 <= step < len(steps) for step in wrong):
        raise ValueError(f"canary {line}: wrong_steps must be in 0..{len(steps) - 1} (got {sorted(wrong)})")
    return CanaryCase(problem, steps, wrong)
