"""Monte-Carlo values of every prefix of a response: how often the policy, going on from there, ends right (2410.01679).

prompt + steps[:k]  --n continuations-->  verifier  -->  V_k = share of right answers, k = 0..K-1;  V_K = the outcome

The prompt's own value is shared by all siblings, and so is that of any equal prefix. A continuation ends where the
response itself would have had to (`rollout.max_response_tokens`); a prefix with no room left is worth its outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from capo_ray.config import TrainConfig
from capo_ray.config.credit import StepValues
from capo_ray.config.seeds import response_seed
from capo_ray.evidence.lines import ResponseLine
from capo_ray.evidence.source import Doors, EvidenceSource
from capo_ray.protocols import Sampling
from capo_ray.types import Evidence, Judged, Problem, TrajectoryKey


@dataclass(frozen=True, slots=True)
class _Estimate:
    """The value of one prefix, None where no continuation had a valid verdict, and the tokens that it took."""

    value: float | None
    num_tokens: int


class ValueSource(EvidenceSource):
    """The K+1 values of each member's prefixes, from so many continuations each.

    `num_value_tokens` counts those sampled for a member's values that no earlier sibling had asked for.
    """

    def __init__(self, asked: StepValues, doors: Doors) -> None:
        self._config, self._num_rollouts, self._stops = doors.config, asked.rollouts, doors.stops
        self._engine, self._tokenizer, self._verifier = doors.engine, doors.tokenizer, doors.verifier

    @classmethod
    def deadline_s(cls, config: TrainConfig) -> float:
        """One call of the engine and one of the verifier."""
        return config.rollout.deadline_s + config.verifier.deadline_s

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence]:
        """Equal prefixes of siblings are continued once."""
        limit = self._config.rollout.max_response_tokens
        said = [tuple(m.trajectory.response.token_ids.tolist()) for m in members]
        prefixes = dict.fromkeys(ids[:start] for m, ids in zip(members, said, strict=True) for start, _ in m.steps)
        prompt, key = members[0].trajectory.prompt_ids.tolist(), members[0].trajectory.key
        tasks = {
            ids: asyncio.ensure_future(self._estimate(problem, key, prompt, ids, limit - len(ids)))
            for ids in prefixes
            if len(ids) < limit
        }
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
        estimates = {ids: task.result() for ids, task in tasks.items()}
        unpaid = {ids: estimate.num_tokens for ids, estimate in estimates.items()}
        outcomes = [_outcome(member) for member in members]
        average = sum(outcomes) / len(outcomes)
        found = []
        for member, ids, outcome in zip(members, said, outcomes, strict=True):
            starts = [ids[:start] for start, _ in member.steps]
            values = [estimates[start].value if start in estimates else outcome for start in starts]
            num_tokens = sum(unpaid.pop(start, 0) for start in starts)
            found.append(Evidence(step_values=(*_filled(values, average), outcome), num_value_tokens=num_tokens))
        return found

    async def _estimate(
        self, problem: Problem, key: TrajectoryKey, prompt: Sequence[int], prefix: Sequence[int], max_tokens: int
    ) -> _Estimate:
        """The estimate of one prefix of a response; `key` is that of the group's first member."""
        rollout = self._config.rollout
        sampling = Sampling(
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_tokens=max_tokens,
            n=self._num_rollouts,
            seed=response_seed(self._config, "values", problem.id, key.group, key.attempt, *prefix),
            **self._stops,
        )
        completions = await self._engine.generate((*prompt, *prefix), sampling)
        # Decoded as one: a continuation's own text lacks the space before its first word where the tokenizer strips it.
        texts = [self._tokenizer.decode((*prefix, *completion.token_ids.tolist())) for completion in completions]
        verdicts = await self._verifier.verify(problem.answer, texts)
        rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
        return _Estimate(
            sum(rewards) / len(rewards) if rewards else None,
            sum(len(completion.token_ids) for completion in completions),
        )

    @classmethod
    def read(cls, line: ResponseLine, asked: StepValues | None) -> Evidence:
        """The field `step_values` [K+1]."""
        return Evidence(step_values=line.per_prefix("step_values", asked))


def _filled(values: Sequence[float | None], first: float) -> list[float]:
    """The values, an unknown one standing for no change from the one before it (`first` before the first)."""
    filled: list[float] = []
    for value in values:
        filled.append(value if value is not None else (filled[-1] if filled else first))
    return filled


def _outcome(member: Judged) -> float:
    reward = member.verdict.reward
    assert reward is not None, "only members with a valid verdict have values"
    return float(reward)
