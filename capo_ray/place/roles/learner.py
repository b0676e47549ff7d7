"""Learner ranks: the policy's learner, one actor to a rank, and the group of them behind `LearnerGroup`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import ObjectRef
from ray.actor import ActorHandle

from capo_ray.config import Job, TrainConfig
from capo_ray.demand import policy_model
from capo_ray.learners import Learner, LearnerSpec
from capo_ray.place.face import send_for_two, spawn
from capo_ray.place.placement import Places
from capo_ray.place.ranks import GroupRank, RankActors, rank_options
from capo_ray.place.role import Role, Site, path_of
from capo_ray.protocols import RunFailed, WeightsHandle
from capo_ray.types import Batch, UpdateReport, WeightedSample, WrittenFile
from capo_ray.weights import Apart, Canary, PayloadWriter, Witness


class LearnerRank(GroupRank):
    """One rank of the learner group."""

    _learner: Learner

    def start(self, spec: LearnerSpec, canary_ids: Sequence[int]) -> int:
        """Build the learner; the process id."""
        self._learner = Learner(spec)
        self._learner.require_files_weights()
        self._canary_ids = tuple(canary_ids)
        self._writer = PayloadWriter(spec.learner.num_threads)
        self._witness = Witness(spec.learner.num_threads)
        return os.getpid()

    def update(self, column: tuple[tuple[WeightedSample, ...], ...], kl_scale: float) -> UpdateReport:
        """The report of one batch."""
        return self._learner.update(column, kl_scale)

    def refresh_reference(self) -> None:
        """As `LearnerGroup.refresh_reference`."""
        self._learner.refresh_reference()

    def gather(self) -> tuple[int, WeightsHandle | None]:
        """(version), and the weights as every engine can load them, not sealed yet (rank 0; nothing elsewhere)."""
        self._writer.begin(self._learner.version, self._learner.weight_bytes)
        self._learner.visit_weights(self._writer.add)
        # Ray copies the payload into its store before it serves the next call, which may write the buffer again.
        return self._learner.version, None if self._rank else self._writer.gathered()

    def seal(
        self, allowed: Apart | None, gathered: Sequence[object]
    ) -> tuple[tuple[int, str, int], WeightsHandle | None]:
        """(version, fingerprint, bytes), and the sealed handle, whose payload is where `gathered` is (rank 0).

        It is of the weights as they lie in the model now, finite and not moved since: what was gathered and is not the
        same is refused by the engines. A canary scored by them goes with it where it is said how far engines may lie
        apart from it.
        """
        canary = None
        if allowed is not None and self._canary_ids:
            (logprobs,) = self._learner.logprobs([self._canary_ids], [1])
            canary = Canary(self._canary_ids, logprobs, allowed)
        version = self._learner.version
        self._witness.begin(version)
        self._learner.visit_weights(self._witness.add)
        if self._rank:
            return (version, "", 0), None
        handle = replace(self._writer.seal(self._witness, canary), payload=gathered)
        return (version, handle.fingerprint, handle.num_bytes), handle

    def logprobs(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """As `LearnerGroup.logprobs`."""
        return self._learner.logprobs(token_ids, starts)

    def export(self, path: str) -> tuple[WrittenFile, ...]:
        """Write the snapshot's policy in HF format (rank 0 does), and let go of the snapshot."""
        written = self._snapshot.export(path)
        del self._snapshot
        return written


class LearnerActors(RankActors[LearnerRank]):
    """`LearnerGroup` over actors."""

    def __init__(
        self,
        config: Job,
        spec: LearnerSpec,
        spawn: Callable[[int], ActorHandle[LearnerRank]],
        run_dir: Path,
        canary_ids: Sequence[int] = (),
        canary_every: int = 0,
    ) -> None:
        super().__init__("learner", spawn, config.learner.num_ranks, config, run_dir)
        self._spec, self._canary_ids, self._canary_every = spec, canary_ids, canary_every
        self._num_publishes = 0
        self.allowed: Apart | None = None

    async def start(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Returns once all ranks have met and built the model."""
        ids = self._canary_ids
        await self._start(LearnerRank.start, lambda rank, meeting: (self._of_rank(rank, meeting), ids))
        on_ready()

    def _of_rank(self, rank: int, meeting: str) -> LearnerSpec:
        """What a rank is made from; `meeting` is where the ranks meet."""
        several = self._num_ranks > 1
        return replace(self._spec, rank=rank, world_size=self._num_ranks, init_method=meeting if several else "")

    async def update(self, batch: Batch) -> UpdateReport:
        """As `LearnerGroup.update`; figures are already summed over ranks, samples are each rank's own."""
        reports = await self._all(LearnerRank.update, lambda rank: (batch.column(rank), batch.kl_scale))
        self.version = reports[0].version
        return replace(reports[0], nonfinite=tuple(key for report in reports for key in report.nonfinite))

    async def refresh_reference(self) -> None:
        """As `LearnerGroup.refresh_reference`."""
        await self._all(LearnerRank.refresh_reference, lambda _: ())

    async def publishable(self, ahead: Callable[[WeightsHandle], None] | None = None) -> WeightsHandle:
        """A handle whose payload refers to rank 0's own handle: the bytes go from node to node, not by here.

        The bytes come before their seal: while engines read and load them the ranks score the canary.
        """
        every = self._canary_every
        allowed = self.allowed if every and self._num_publishes % every == 0 else None
        self._num_publishes += 1
        gathered = [send_for_two(rank, LearnerRank.gather) for rank in self._ranks]
        payload = gathered[0][1]
        sealed = [send_for_two(rank, LearnerRank.seal, allowed, [payload]) for rank in self._ranks]
        if ahead is not None:
            ahead(WeightsHandle(self.version, "", payload))
        calls: list[tuple[ObjectRef[Any], str]] = [
            *((ref, f"learner rank {i} (publish: gather)") for i, (ref, _) in enumerate(gathered)),
            *((ref, f"learner rank {i} (publish: seal)") for i, (ref, _) in enumerate(sealed)),
        ]
        told: list[tuple[int, str, int]] = (await self._gather(calls))[len(self._ranks) :]
        versions = {version for version, _, _ in told}
        if versions != {self.version}:
            raise RunFailed(
                f"expected version {self.version} of the weights from every learner rank, got {sorted(versions)}; go "
                f"on from the last checkpoint with resume={self._run_dir}"
            )
        _, fingerprint, num_bytes = told[0]
        return WeightsHandle(self.version, "", sealed[0][1], fingerprint, num_bytes)

    async def logprobs(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> tuple[tuple[float, ...], ...]:
        """As `LearnerGroup.logprobs`."""
        return (await self._all(LearnerRank.logprobs, lambda _: (token_ids, starts)))[0]

    async def export(self, path: str) -> tuple[WrittenFile, ...]:
        """As `LearnerGroup.export`; the ranks then let go of their snapshots."""
        written = await self._beside(LearnerRank.export, path)
        return tuple(file for files in written for file in files)


def spec_of(config: TrainConfig) -> LearnerSpec:
    """What a rank is made from, were it the only one."""
    return LearnerSpec(
        model_path=path_of(policy_model(config)),
        dtype=config.model.dtype,
        learner=config.learner,
        loss=config.loss,
        temperature=config.rollout.temperature,
        total_updates=config.run.num_updates,
        seed=config.run.seed,
    )


def spawning(config: Job, places: Places) -> Callable[[int], ActorHandle[LearnerRank]]:
    """How the actor of a rank is made."""
    return lambda rank: spawn(LearnerRank, rank_options(places.of("learner", rank), config), rank)


def build(site: Site) -> LearnerActors:
    """Learner ranks, not started."""
    config, make = site.config, spawning(site.config, site.places)
    every = config.weights.canary_every
    return LearnerActors(config, spec_of(config), make, site.run_dir, site.canary_ids, every)


LEARNER = Role("learner", build)
