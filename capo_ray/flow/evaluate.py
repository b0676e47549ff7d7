"""Held-out accuracy of the policy as the engines hold it: some sampled responses to each problem, and a greedy one.

    publish v -> begin(v) ... the learner updates meanwhile ... settle() -> publish v + 1

Invariant: every token of an evaluation is of one version, so the next publish waits for it; nothing else does.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from capo_ray.config.seeds import draw_seed
from capo_ray.evaluation import Estimate, Judgement, estimate, mean_reward, shares
from capo_ray.flow.group import GroupWay, judge
from capo_ray.flow.parts import Parts
from capo_ray.protocols import Environment, PartLost, PartTimeout, Sampling, Verifier
from capo_ray.types import Completion, Problem, Verdict
from capo_ray.work import noting

MAX_IN_FLIGHT = 256
Answered = tuple[Completion, Verdict]
_log = logging.getLogger(__name__)


async def ask(
    environment: Environment, verifier: Verifier, prompt_ids: Sequence[int], problem: Problem, sampling: Sampling
) -> tuple[Answered, ...]:
    """Responses to one problem, each with its verdict."""
    played = await environment.play(problem, prompt_ids, sampling)
    verdicts = await judge(verifier, problem.answer, played)
    return tuple((one.response, verdict) for one, verdict in zip(played, verdicts, strict=True))


def judgement(answered: Answered) -> Judgement:
    """What an evaluation counts of a response."""
    completion, verdict = answered
    return Judgement(verdict.reward, verdict.extracted, completion.finish == "length", completion.num_sampled)


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Responses to each held-out problem, those at `run.eval_temperature` and the greedy one; failed ones are absent.

    With `run.eval_temperature=0` both are the same responses.
    """

    version: int
    sampled: tuple[tuple[Judgement, ...], ...]
    greedy: tuple[Judgement, ...]
    num_failed: int
    num_too_long: int = 0
    """Held-out problems that were not asked, since prompt and response do not fit the context."""

    @property
    def accuracy(self) -> Estimate:
        """The mean over problems of the share of right responses (avg@k)."""
        return _accuracy(self.sampled)

    @property
    def greedy_accuracy(self) -> Estimate:
        return _accuracy([(one,) for one in self.greedy])

    def figures(self) -> dict[str, float]:
        """What is logged; an accuracy is absent where no response was judged."""
        told = [one for judged in self.sampled for one in judged]
        figures = {
            "eval/invalid_responses": float(sum(not one.valid for one in (*told, *self.greedy))),
            "eval/failed_requests": float(self.num_failed),
            "eval/too_long_problems": float(self.num_too_long),
        }
        if told:
            figures["eval/response_tokens_mean"] = shares(told)["mean_tokens"]
            figures["eval/truncated_frac"] = shares(told)["truncated_frac"]
        accuracy = self.accuracy
        figures |= {
            "eval/accuracy_frac": accuracy.value,
            "eval/accuracy_low_frac": accuracy.low,
            "eval/accuracy_high_frac": accuracy.high,
            "eval/greedy_accuracy_frac": self.greedy_accuracy.value,
        }
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def summary(self) -> dict[str, Any]:
        """What the run's summary says of it; numbers without a response are None."""
        sampled, greedy = self.accuracy, self.greedy_accuracy
        found = {"accuracy": sampled.value, "greedy_accuracy": greedy.value}
        told: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in found.items()}
        for name, one in (("accuracy_ci95", sampled), ("greedy_accuracy_ci95", greedy)):
            told[name] = None if math.isnan(one.value) else one.ci95
        return told


def _accuracy(responses: Sequence[Sequence[Judgement]]) -> Estimate:
    shares_right = (mean_reward(judged) for judged in responses)
    return estimate([share for share in shares_right if share is not None])


class HeldOut:
    """Evaluates beside training; `on_report` is told each report as soon as it is there."""

    def __init__(self, parts: Parts, way: GroupWay, on_report: Callable[[EvalReport], None]) -> None:
        self._parts, self._way, self._on_report = parts, way, on_report
        self._task: asyncio.Task[EvalReport] | None = None

    def begin(self, version: int) -> None:
        """Start to evaluate the version that the engines hold."""
        self._task = asyncio.create_task(self.evaluate(version), name=f"evaluation {version}")

    async def settle(self) -> EvalReport | None:
        """The report of what was begun, once it is done; None where nothing is under way."""
        task, self._task = self._task, None
        return await task if task is not None else None

    def cancel(self) -> None:
        """Give up what is under way."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def evaluate(self, version: int) -> EvalReport:
        """The report on each held-out problem that fits.

        Each problem has a seed of its own, the same at every evaluation: two of them differ by the policy's change
        alone. A request that fails is counted: an evaluation is no reason to end a run.
        """
        parts, run = self._parts, self._parts.config.run
        held_out = parts.problems.held_out(run.eval_problems)
        problems = [p for p in held_out if self._way.fits(p)]
        tokens = parts.config.rollout.max_response_tokens
        one = Sampling(temperature=0.0, max_tokens=tokens, **parts.stops)
        many = replace(one, temperature=run.eval_temperature, n=run.eval_samples)
        wanted = [many, one] if run.eval_temperature else [many]
        gate = asyncio.Semaphore(MAX_IN_FLIGHT)

        async def answer(problem: Problem, sampling: Sampling) -> tuple[Judgement, ...]:
            async with gate:
                try:
                    drawn = replace(sampling, seed=draw_seed(run.seed, "evaluation", problem.id))
                    prompt_ids = self._way.encode_prompt(problem)
                    answered = await ask(self._way.environment, parts.verifier, prompt_ids, problem, drawn)
                except (PartTimeout, PartLost) as error:
                    _log.warning("an evaluation request failed: %s", error)
                    return ()
                return tuple(map(judgement, answered))

        with noting(errand="evaluation") as works:
            answers = await asyncio.gather(*(answer(problem, sampling) for sampling in wanted for problem in problems))
        parts.ledger.note(works.merged())
        sampled = tuple(judged for judged in answers[: len(problems)] if judged)
        greedy = tuple(judged[0] for judged in answers[-len(problems) :] if judged) if problems else ()
        too_long = len(held_out) - len(problems)
        report = EvalReport(version, sampled, greedy, sum(not judged for judged in answers), too_long)
        self._on_report(report)
        return report
