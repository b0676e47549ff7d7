"""Held-out accuracy of the policy as the engines hold it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from capo_ray.flow.group import GroupWay
from capo_ray.flow.parts import Parts
from capo_ray.protocols import Sampling
from capo_ray.types import Completion, Problem, Verdict

MAX_IN_FLIGHT = 256


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Accuracy over valid verdicts, the number of invalid ones, and the mean response length in tokens."""

    accuracy: float
    num_problems: int
    num_invalid: int
    mean_tokens: float


async def evaluate(parts: Parts, way: GroupWay) -> EvalReport:
    """The report of one response to each held-out problem that fits, at `run.eval_temperature` (0 is greedy)."""
    config = parts.config
    problems = [p for p in parts.problems.held_out(config.run.eval_problems) if way.fits(p)]
    sampling = Sampling(
        temperature=config.run.eval_temperature, top_p=1.0, max_tokens=config.rollout.max_response_tokens, **parts.stops
    )
    gate = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def answer(problem: Problem) -> tuple[Completion, Verdict]:
        async with gate:
            (completion,) = await parts.engine.generate(way.encode_prompt(problem), sampling)
            (verdict,) = await parts.verifier.verify(problem.answer, [completion.text])
            return completion, verdict

    results = await asyncio.gather(*(answer(problem) for problem in problems))
    verdicts = [verdict for _, verdict in results]
    return EvalReport(
        accuracy=_accuracy(verdicts),
        num_problems=len(problems),
        num_invalid=sum(not v.valid for v in verdicts),
        mean_tokens=sum(len(c.token_ids) for c, _ in results) / max(1, len(results)),
    )


def _accuracy(verdicts: Sequence[Verdict]) -> float:
    """The share of right answers among the valid verdicts; nan when none is valid."""
    rewards = [v.reward for v in verdicts if v.reward is not None]
    return sum(rewards) / len(rewards) if rewards else float("nan")
