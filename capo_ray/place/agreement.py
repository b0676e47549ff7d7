"""Before the first update engine and learner hold the same file: what their scores differ by then is noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from capo_ray.config import TrainConfig
from capo_ray.engines import HfTokenizer
from capo_ray.protocols import RunFailed
from capo_ray.weights import START, Apart, allowance, apart

Scores = tuple[float, ...]
CANARY_TOKENS = 24
"""Both sides score them at every publish, which on a CPU costs more than moving the weights: with 48 tokens and no bf16
units half a second each. Wrong weights show in as few."""
START_TOKENS = 192
"""Scored once, to measure the noise: over 24 tokens its mean would vary by a fifth, and so what is allowed."""


class Engines(Protocol):
    """What is asked of the rollout pool."""

    async def scores_at_start(self, token_ids: Sequence[int]) -> list[Scores]:
        """The logprobs of tokens [1, end) by every worker."""


class Learners(Protocol):
    """What is asked of the learner group."""

    async def logprobs(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[Scores, ...]:
        """As `LearnerGroup.logprobs`."""


def start_ids(tokenizer: HfTokenizer, prompts: list[str], max_tokens: int) -> tuple[int, ...]:
    """Fixed token ids that engine and learner both score at the start; later versions' canary is how they begin."""
    ids: list[int] = []
    while len(ids) < START_TOKENS and prompts:
        for prompt in prompts:
            ids += tokenizer.encode_data(prompt)
    return tuple(ids[: min(START_TOKENS, max_tokens - 1)])


async def agree_at_start(config: TrainConfig, ids: Sequence[int], engines: Engines, learners: Learners) -> Apart | None:
    """How far any engine may lie apart from the learner at later versions, by `ids`; None if nothing will be compared.

    Raises `RunFailed` where they lie further apart than the same weights do: nodes that see different files.
    """
    weights, dtype = config.weights, config.model.dtype
    if not weights.canary_every or len(ids) < 2:
        return None
    (ours,) = await learners.logprobs([ids], [1])
    theirs = [apart(scores, ours) for scores in await engines.scores_at_start(ids)]
    given = weights.canary_tolerance
    limit = Apart(given, given) if given else START[dtype]
    for index, distance in enumerate(theirs):
        if not distance.within(limit):
            raise RunFailed(
                f"rollout worker {index} and the learner must start from the same weights, got logprobs that differ "
                f"by {distance} (allowed {limit}); check that every node sees the same files under model.path="
                f"{config.model.path}, or set weights.canary_tolerance"
            )
    if given:
        return limit
    noise = Apart(max((d.mean for d in theirs), default=0.0), max((d.worst for d in theirs), default=0.0))
    return allowance(dtype, noise)
