"""One batch of credited groups into one update, and the new weights to the engines.

groups -> batch-wide scale of the credit -> Sample -> Batch -> learner -> weights -> engines
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from capo_ray.credit import scale_batch
from capo_ray.flow.group import CreditedGroup
from capo_ray.flow.parts import Parts
from capo_ray.packing import build_batch
from capo_ray.types import UpdateReport


class Training:
    """What stands between the slot buffer and the learner."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def update(self, groups: Sequence[CreditedGroup]) -> tuple[list[CreditedGroup], UpdateReport]:
        """The groups as they were trained, and the learner's report of their batch."""
        config = self._parts.config
        credits = scale_batch([group.credit for group in groups], config.credit)
        trained = [replace(group, credit=credit) for group, credit in zip(groups, credits, strict=True)]
        batch = build_batch(
            [sample for group in trained for sample in group.samples],
            num_ranks=config.learner.num_ranks,
            microbatch_tokens=config.learner.microbatch_tokens,
            aggregation=config.loss.aggregation,
            max_response_tokens=config.rollout.max_response_tokens,
        )
        return trained, await self._parts.learner.update(batch)

    async def publish(self) -> float:
        """The seconds until all engines hold the learner's weights."""
        started = time.monotonic()
        await self._parts.engine.load_weights(await self._parts.learner.publishable())
        return time.monotonic() - started
