"""Held-out accuracy of the policy as the engines hold it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from capo_ray.config.seeds import draw_seed
from capo_ray.flow.group import GroupWay
from capo_ray.flow.parts import Parts
from capo_ray.protocols import PartLost, PartTimeout, Sampling
from capo_ray.types import Completion, Problem, Verdict

MAX_IN_FLIGHT = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Accuracy over valid verdicts (nan: none), invalid verdicts, failed requests, mean response length in tokens."""

    accuracy: float
    num_problems: int
    num_invalid: int
    num_failed: int
    mean_tokens: float

    def figures(self) -> dict[str, float]:
        """What is logged; the accuracy is absent where no response was judged."""
        figures = {"eval/invalid_responses": float(self.num_invalid), "eval/failed_requests": float(self.num_failed)}
        if self.num_failed < self.num_problems:
            figures["eval/response_tokens_mean"] = self.mean_tokens
        return figures | ({} if math.isnan(self.accuracy) else {"eval/accuracy_frac": self.accuracy})


async def evaluate(parts: Parts, way: GroupWay) -> EvalReport:
    """The report of one response to each held-out problem that fits, at `run.eval_temperature` (0 is greedy).

    Each problem has a seed of its own, the same at every evaluation: two of them differ by the policy's change alone.
    A request that fails is counted: an evaluation is no reason to end a run.
    """
    config = parts.config
    problems = [p for p in parts.problems.held_out(config.run.eval_problems) if way.fits(p)]
    sampling = Sampling(
        temperature=config.run.eval_temperature, top_p=1.0, max_tokens=config.rollout.max_response_tokens, **parts.stops
    )
    gate = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def answer(problem: Problem) -> tuple[Completion, Verdict] | None:
        async with gate:
            try:
                drawn = replace(sampling, seed=draw_seed(config.run.seed, "evaluation", problem.id))
                (completion,) = await parts.engine.generate(way.encode_prompt(problem), drawn)
                (verdict,) = await parts.verifier.verify(problem.answer, [completion.text])
            except (PartTimeout, PartLost) as error:
                _log.warning("an evaluation request failed: %s", error)
                return None
            return completion, verdict

    answers = await asyncio.gather(*(answer(problem) for problem in problems))
    results = [result for result in answers if result is not None]
    verdicts = [verdict for _, verdict in results]
    return EvalReport(
        accuracy=_accuracy(verdicts),
        num_problems=len(problems),
        num_invalid=sum(not v.valid for v in verdicts),
        num_failed=len(answers) - len(results),
        mean_tokens=sum(len(c.token_ids) for c, _ in results) / max(1, len(results)),
    )


def _accuracy(verdicts: Sequence[Verdict]) -> float:
    """The share of right answers among the valid verdicts; nan when none is valid."""
    rewards = [v.reward for v in verdicts if v.reward is not None]
    return sum(rewards) / len(rewards) if rewards else float("nan")
