"""Learner ranks: the policy's learner, one actor to a rank, and the group of them behind `LearnerGroup`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import ObjectRef
from ray.actor import ActorHandle

from capo_ray.config import Job, TrainConfig
from capo_ray.demand import adapters_alone, policy_model
from capo_ray.learners import LearnerSpec
from capo_ray.place.face import send, send_for_two, spawn
from capo_ray.place.placement import Places
from capo_ray.place.ranks import GroupRank, RankActors, rank_options
from capo_ray.place.role import Role, Site, path_of
from capo_ray.protocols import RunFailed, WeightsHandle
from capo_ray.types import Batch, TrajectoryKey, UpdateReport, WeightedSample, WrittenFile
from capo_ray.weights import Apart, Canary, Meeting, WireLost
from capo_ray.work import working

if TYPE_CHECKING:
    from capo_ray.learners import Learner
    from capo_ray.weights import Sender


class LearnerRank(GroupRank):
    """One rank of the learner group."""

    _learner: Learner

    def start(self, spec: LearnerSpec, canary_ids: Sequence[int]) -> int:
        """Build the learner; the process id."""
        from capo_ray.learners import Learner  # they import torch, which the driver does without
        from capo_ray.learners.store import listen
        from capo_ray.weights import CollectiveSender, PayloadWriter, Witness

        self._learner = Learner(spec)
        onto = self._learner.require_files_weights()
        self._canary_ids = tuple(canary_ids)
        self._writer, self._wire = PayloadWriter(spec.learner.num_threads), CollectiveSender(listen)
        self._witness = Witness(spec.learner.num_threads, onto)
        return os.getpid()

    def update(
        self, column: tuple[tuple[WeightedSample, ...], ...], kl_scale: float, watched: frozenset[TrajectoryKey]
    ) -> UpdateReport:
        """The report of one batch."""
        return self._learner.update(column, kl_scale, watched)

    def refresh_reference(self) -> None:
        """As `LearnerGroup.refresh_reference`."""
        self._learner.refresh_reference()

    def gather(self) -> tuple[int, WeightsHandle | None]:
        """(version), and the weights as every engine can load them, not sealed yet (rank 0; nothing elsewhere)."""
        self._sender: Sender = self._writer
        self._writer.begin(self._learner.version, self._learner.sent_bytes)
        self._learner.visit_weights(self._writer.add)
        # Ray copies the payload into its store before it serves the next call, which may write the buffer again.
        return self._learner.version, None if self._rank else self._writer.gathered()

    def send(self, meeting: Meeting) -> tuple[int, str, dict[str, float]]:
        """(version, why it did not reach all, figures) of the weights, sent bucket by bucket from rank 0."""
        self._sender, version = self._wire, self._learner.version
        self._writer.release()
        if self._rank:  # it stands in the gather and is shown nothing
            self._learner.visit_weights(lambda _: None)
            return version, "", {}
        self._wire.meet(replace(meeting, version=version))
        self._wire.begin(version)
        self._learner.visit_weights(self._wire.add)
        self._wire.gathered()
        return version, self._wire.failure, self._wire.figures()

    def seal(self, allowed: Apart | None, gathered: object) -> tuple[tuple[int, str, int], WeightsHandle | None]:
        """(version, fingerprint, bytes that an engine loads), and the sealed handle over `gathered` (rank 0).

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
        handle = replace(self._sender.seal(self._witness, canary), payload=gathered)
        # Of adapters it loads the whole model, which is what its deadline is for.
        return (version, handle.fingerprint, max(handle.num_bytes, self._learner.weight_bytes)), handle

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
        self.sent: dict[str, float] = {}
        """Figures of the last version that was sent in buckets."""

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
        shared = self._spec.learner.sequence_parallel
        reports = await self._all(
            LearnerRank.update, lambda rank: (batch.column(rank // shared), batch.kl_scale, batch.watched)
        )
        self.version = reports[0].version
        nonfinite = tuple(key for report in reports for key in report.nonfinite)
        watched = {key: told for report in reports for key, told in report.watched.items()}
        return replace(reports[0], nonfinite=nonfinite, watched=watched)

    async def refresh_reference(self) -> None:
        """As `LearnerGroup.refresh_reference`."""
        await self._all(LearnerRank.refresh_reference, lambda _: ())

    async def publishable(
        self, ahead: Callable[[WeightsHandle], None] | None = None, meeting: Meeting | None = None
    ) -> WeightsHandle:
        """A handle that refers to rank 0's own: the bytes do not come by here.

        They go to a meeting, or into Ray's object store, and before their seal: while engines read and load them the
        ranks score the canary. `ahead` is called with where they are. Raises `WireLost` where they did not reach all.
        """
        every = self._canary_every
        allowed = self.allowed if every and self._num_publishes % every == 0 else None
        with working(self._role, range(self._num_ranks)):
            handle = await self._send(allowed, ahead, meeting)
        if handle.version != self.version:
            raise RunFailed(
                f"expected version {self.version} of the weights from every learner rank, got {handle.version}; go on "
                f"from the last checkpoint with resume={self._run_dir}"
            )
        self._num_publishes += 1
        return handle

    async def latest(self) -> WeightsHandle:
        """As `publishable`, for one engine alone: of the version that the ranks hold once they come to it."""
        return await self._send(self.allowed if self._canary_every else None, None, None)

    async def meeting_place(self) -> str:
        """An address on rank 0's node that members of a group can come to."""
        reserved = send(self._ranks[0], GroupRank.rendezvous, self._alone)
        return (await self._gather([(reserved, "learner rank 0 (a place to send from)")]))[0]

    async def _send(
        self, allowed: Apart | None, ahead: Callable[[WeightsHandle], None] | None, meeting: Meeting | None
    ) -> WeightsHandle:
        """The handle of the version that all ranks hold, sent and sealed."""
        sent: list[ObjectRef[Any]]
        if meeting is None:
            gathered = [send_for_two(rank, LearnerRank.gather) for rank in self._ranks]
            sent = [ref for ref, _ in gathered]
            there: object = gathered[0][1]
            where: object = [there]  # in a list Ray leaves the reference as it is
        else:
            sent = [send(rank, LearnerRank.send, meeting) for rank in self._ranks]
            there = where = meeting
        sealed = [send_for_two(rank, LearnerRank.seal, allowed, where) for rank in self._ranks]
        if ahead is not None:
            ahead(WeightsHandle(self.version, "", there))
        calls: list[tuple[ObjectRef[Any], str]] = [
            *((ref, f"learner rank {i} (publish: send)") for i, ref in enumerate(sent)),
            *((ref, f"learner rank {i} (publish: seal)") for i, (ref, _) in enumerate(sealed)),
        ]
        answers = await self._gather(calls)
        if meeting is not None:
            version, lost, self.sent = answers[0]
            if lost:
                raise WireLost(f"the learner could not send version {version}: {lost}")
        told: list[tuple[int, str, int]] = answers[len(self._ranks) :]
        if len(versions := {version for version, _, _ in told}) != 1:
            raise RunFailed(
                f"expected one version of the weights from every learner rank, got {sorted(versions)}; go on from the "
                f"last checkpoint with resume={self._run_dir}"
            )
        version, fingerprint, num_bytes = told[0]
        return WeightsHandle(version, "", sealed[0][1], fingerprint, num_bytes)

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
        adapters_alone=adapters_alone(config),
        other_model="model.path" in config.run.changes_allowed,
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
