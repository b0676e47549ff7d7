"""Monte-Carlo values of every prefix of a response: how often the policy, going on from there, ends right (2410.01679).

prompt + steps[:k]  --n continuations-->  verifier  -->  V_k = share of right answers, k = 0..K-1;  V_K = the outcome

The prompt's own value is shared by all siblings, and so is that of any equal prefix. A continuation ends where the
response itself would have had to (`rollout.max_response_tokens`); a prefix with no room left is worth its outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from capo_ray.flow.parts import Parts
from capo_ray.flow.seeds import response_seed
from capo_ray.protocols import Sampling
from capo_ray.types import Judged, Problem


@dataclass(frozen=True, slots=True)
class MemberValues:
    """Of one member: `values` [K+1], and the tokens sampled for those values that no earlier sibling had asked for."""

    values: tuple[float, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Estimate:
    """The value of one prefix, None where no continuation had a valid verdict, and the tokens that it took."""

    value: float | None
    num_tokens: int


async def estimate_step_values(
    parts: Parts, problem: Problem, members: Sequence[Judged], num_rollouts: int
) -> list[MemberValues]:
    """The values of each valid member's prefixes, from `num_rollouts` continuations each."""
    limit = parts.config.rollout.max_response_tokens
    said = [tuple(m.trajectory.response.token_ids.tolist()) for m in members]
    prefixes = dict.fromkeys(ids[:start] for m, ids in zip(members, said, strict=True) for start, _ in m.steps)
    prompt = members[0].trajectory.prompt_ids.tolist()
    key = members[0].trajectory.key
    tasks = {
        ids: asyncio.ensure_future(
            _estimate(
                parts,
                problem,
                prompt,
                ids,
                limit - len(ids),
                num_rollouts,
                response_seed(parts.config, "values", problem.id, key.group, key.attempt, *ids),
            )
        )
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
        keys = [ids[:start] for start, _ in member.steps]
        values = [estimates[key].value if key in estimates else outcome for key in keys]
        found.append(MemberValues((*_filled(values, average), outcome), sum(unpaid.pop(key, 0) for key in keys)))
    return found


async def _estimate(
    parts: Parts,
    problem: Problem,
    prompt: Sequence[int],
    prefix: Sequence[int],
    max_tokens: int,
    num_rollouts: int,
    seed: int | None,
) -> _Estimate:
    """The estimate of one prefix of a response."""
    rollout = parts.config.rollout
    sampling = Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        max_tokens=max_tokens,
        n=num_rollouts,
        seed=seed,
        **parts.stops,
    )
    completions = await parts.engine.generate((*prompt, *prefix), sampling)
    # Decoded as one: a continuation's own text lacks the space before its first word where the tokenizer strips it.
    texts = [parts.tokenizer.decode((*prefix, *completion.token_ids.tolist())) for completion in completions]
    verdicts = await parts.verifier.verify(problem.answer, texts)
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    return _Estimate(
        sum(rewards) / len(rewards) if rewards else None, sum(len(completion.token_ids) for completion in completions)
    )


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
