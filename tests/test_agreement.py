"""Engine and learner hold the same file before the first update, or the run does not begin."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from capo_ray.config import TrainConfig
from capo_ray.place.agreement import agree_at_start
from capo_ray.protocols import RunFailed
from capo_ray.weights import Apart

CANARY = tuple(range(64))


class Scorer:
    """Engines, and a learner, whose logprobs lie `gaps` apart from -1."""

    def __init__(self, *gaps: float) -> None:
        self.gaps = gaps

    async def scores_at_start(self, token_ids: Sequence[int]) -> list[tuple[float, ...]]:
        return [tuple(-1.0 + gap for _ in token_ids[1:]) for gap in self.gaps]

    async def logprobs(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(-1.0 for _ in ids[start:]) for ids, start in zip(token_ids, starts, strict=True))


def config(dtype: str, **weights: object) -> TrainConfig:
    return TrainConfig.model_validate({"model": {"dtype": dtype}, "weights": weights})


def agree(chosen: TrainConfig, *gaps: float) -> Apart | None:
    return asyncio.run(agree_at_start(chosen, CANARY, Scorer(*gaps), Scorer()))


def test_the_noisiest_engine_sets_what_is_allowed() -> None:
    assert agree(config("bfloat16"), 0.01, 0.03) == Apart(pytest.approx(0.09), 1.0)
    assert agree(config("float32"), 0.0) == Apart(2e-4, 1e-3)


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 0.02), ("bfloat16", 0.2)])
def test_different_files_in_one_directory_are_refused_in_a_sentence(dtype: str, gap: float) -> None:
    with pytest.raises(RunFailed, match=r"rollout worker 1 and the learner must start from the same weights.*laptop"):
        agree(config(dtype), 0.0, gap)


def test_a_tolerance_given_by_the_user_wins() -> None:
    assert agree(config("float32", canary_tolerance=0.5), 0.3) == Apart(0.5, 0.5)
    with pytest.raises(RunFailed, match="must start from the same weights"):
        agree(config("bfloat16", canary_tolerance=1e-3), 0.03)


def test_nothing_is_asked_where_nothing_will_be_compared() -> None:
    assert agree(config("float32", canary_every=0), 9.0) is None
