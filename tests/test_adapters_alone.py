"""Adapters alone from a learner's rank to an engine, both made as a run makes them: by host memory, and in buckets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cli.compose import compose_train
from capo_ray.learners.store import reserve_meeting
from capo_ray.place.roles.learner import LearnerRank, spec_of
from capo_ray.place.roles.rollout import RolloutWorker, engine_spec
from capo_ray.problems import asset_path
from capo_ray.protocols import WeightsHandle
from capo_ray.types import TrajectoryKey
from capo_ray.weights import Apart, Meeting, apart, checkpoint_shapes, read_manifest
from capo_ray.weights.contents import adapter_shapes
from tests.learner_group import make_batch

pytestmark = pytest.mark.real
IDS = tuple(range(3, 27))
NOBODY: frozenset[TrajectoryKey] = frozenset()


async def publish(rank: LearnerRank, worker: RolloutWorker, address: str, version: int, delta_frac: float) -> int:
    """The bytes that went, of a version that the engine holds afterwards; by host memory where there is no address."""
    if address:
        token: Any = Meeting(address, 2, "gloo", version, 120.0, 1 << 16, delta_frac)
        await worker.expect_weights(WeightsHandle(version, "", token))
        _, lost, figures = await asyncio.to_thread(rank.send, token)
        assert not lost
    else:
        _, gathered = rank.gather()
        assert gathered is not None
        await worker.expect_weights(gathered)
        token = gathered.payload
    (sealed, fingerprint, _), handle = rank.seal(Apart(1e-3, 1e-2), token)
    assert handle is not None and await worker.load_weights(handle, sealed, fingerprint) == version
    return int(figures["weights/sent_mib"] * 2**20) if address else read_manifest(handle.manifest).payload_bytes


async def train_and_publish(rank: LearnerRank, worker: RolloutWorker, ways: Sequence[tuple[bool, float]]) -> list[int]:
    """The bytes of each version; the engine's scores are the learner's after each, and moved since the one before."""
    address, sizes = reserve_meeting("127.0.0.1"), []
    await worker.start()
    rank.update(make_batch(0).column(0), 1.0, NOBODY)  # the engine, of version 0, is late: it is never sent this one
    (before,) = await worker.score([IDS], [1])
    for version, (by_wire, delta_frac) in enumerate(ways, start=2):
        rank.update(make_batch(version).column(0), 1.0, NOBODY)
        sizes.append(await publish(rank, worker, address if by_wire else "", version, delta_frac))
        (ours,), (theirs,) = rank.logprobs([IDS], [1]), await worker.score([IDS], [1])
        assert apart(theirs, ours).worst < 1e-4 and apart(theirs, before).mean > 5e-3
        before = theirs
    return sizes


def test_an_engine_holds_what_the_learner_does_of_adapters_that_went_alone(tmp_path: Path) -> None:
    config = compose_train(
        [
            *("credit=grpo", "learner.lora.rank=4", "learner.lr=0.01", "learner.num_epochs=4", "learner.backend=torch"),
            f"run.dir={tmp_path}",
        ]
    )
    rank, worker = LearnerRank(0), RolloutWorker(engine_spec(config))
    rank.start(spec_of(config), IDS)
    try:
        sizes = asyncio.run(train_and_publish(rank, worker, [(False, 0.0), (True, 0.0), (False, 0.0), (True, 0.5)]))
    finally:
        worker._engine.close()
        rank._learner.close()
    shapes = adapter_shapes(checkpoint_shapes(str(asset_path("laptop", "policy"))), config.learner.lora)
    assert sizes == [4 * sum(rows * columns for rows, columns in shapes.values())] * 4
