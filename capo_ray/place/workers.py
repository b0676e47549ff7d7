"""The actor classes: thin shells around the parts. An actor owns one part, starts it, and answers `ping`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from capo_ray.arrays import FloatArray
from capo_ray.place.ranks import GroupRank
from capo_ray.protocols import JudgeRequest, Sampling, WeightsHandle
from capo_ray.types import Completion, Critique, Problem, UpdateReport, Verdict, WeightedSample, WrittenFile

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from capo_ray.config.sections import CriticConfig, VerifierConfig
    from capo_ray.engines import EngineSpec
    from capo_ray.learners import Learner, LearnerSpec, RewardLearner, RewardSpec
    from capo_ray.learners.reward import Column
    from capo_ray.learners.reward_batch import Label
    from capo_ray.weights import Apart


class RolloutWorker:
    """A vLLM engine that holds the policy."""

    def __init__(self, spec: EngineSpec) -> None:
        from capo_ray.engines import VllmEngine

        self._engine = VllmEngine(spec)

    async def start(self) -> int:
        """Load the model; the process id."""
        await asyncio.to_thread(self._engine.start)
        return os.getpid()

    async def ping(self) -> dict[str, float]:
        """The engine's figures; raises if it is broken."""
        self._engine.ping()
        return self._engine.stats()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`."""
        return await self._engine.generate(prompt_ids, sampling)

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """As `TextEngine.score`."""
        return await self._engine.score(token_ids, starts)

    async def expect_weights(self, gathered: WeightsHandle) -> None:
        """As `TextEngine.expect_weights`."""
        self._engine.expect_weights(gathered)

    async def load_weights(self, handle: WeightsHandle, version: int, fingerprint: str) -> int:
        """As `TextEngine.load_weights`; version and fingerprint are those that the driver has from the learner."""
        if isinstance(handle.payload, list):  # the bytes came by themselves, before the seal
            gathered: WeightsHandle = await handle.payload[0]
            handle = replace(handle, payload=gathered.payload)
        return await self._engine.load_weights(replace(handle, version=version, fingerprint=fingerprint))


class CriticWorker:
    """A judge, and the vLLM engine that holds its critic where its backend is one."""

    def __init__(
        self, spec: EngineSpec | None, config: CriticConfig, vote: str, quorum: int, keeper: ActorHandle | None
    ) -> None:
        self._spec, self._config, self._vote, self._quorum = spec, config, vote, quorum
        self._keeper = keeper

    async def start(self) -> int:
        """Load the model, if any; the process id."""
        from capo_ray.critics import build_judge
        from capo_ray.engines import HfTokenizer, VllmEngine
        from capo_ray.place.store import RemoteStore

        self._engine = VllmEngine(self._spec) if self._spec is not None else None
        if self._engine is not None:
            await asyncio.to_thread(self._engine.start)
        self._judge = build_judge(
            self._config,
            vote=self._vote,
            quorum=self._quorum,
            store=RemoteStore(self._keeper) if self._keeper is not None else None,
            engine=self._engine,
            tokenizer=HfTokenizer(self._spec.model_path) if self._spec is not None else None,
            model_revision=self._spec.model_path if self._spec is not None else self._config.backend,
        )
        return os.getpid()

    async def ping(self) -> dict[str, float]:
        """The figures of the judge and of its engine's queue; raises if the engine is broken."""
        if self._engine is None:
            return self._judge.stats()
        self._engine.ping()
        engine = self._engine.stats()
        return self._judge.stats() | {
            "critic/running_requests": engine["running_requests"],
            "critic/waiting_requests": engine["waiting_requests"],
            "critic/engine_busy_s_total": engine["busy_s_total"],
            "critic/prefix_hit_tokens_total": engine["cached_prompt_tokens_total"],
        }

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As `Judge.critique`."""
        return await self._judge.critique(problem, responses, num_votes)


class VerifierWorker:
    """Killable child processes that compare answers."""

    def __init__(self, config: VerifierConfig) -> None:
        from capo_ray.verifiers import VerifierPool

        self._pool = VerifierPool(config)

    async def start(self) -> int:
        """Start the children; the process id."""
        self._pool.start()
        return os.getpid()

    async def ping(self) -> dict[str, float]:
        """The pool's figures."""
        return self._pool.stats()

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        """As `Verifier.verify`."""
        return await self._pool.verify(answer, responses)


class LearnerRank(GroupRank):
    """One rank of the learner group."""

    _learner: Learner

    def start(self, spec: LearnerSpec, canary_ids: Sequence[int]) -> int:
        """Build the learner; the process id."""
        from capo_ray.learners import Learner
        from capo_ray.weights import PayloadWriter, Witness

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
        return self._learner.version, None if self._rank else self._writer.finish(None)

    def seal(
        self, allowed: Apart | None, gathered: Sequence[object]
    ) -> tuple[tuple[int, str, int], WeightsHandle | None]:
        """(version, fingerprint, bytes), and the sealed handle, whose payload is where `gathered` is (rank 0).

        A canary goes with it where it is said how far engines may lie apart from it. It names the digest of the weights
        that it was scored with, seen where they lie: what was gathered and is not the same is refused by the engines.
        """
        from capo_ray.weights import Canary

        canary = None
        if allowed is not None and self._canary_ids:
            (logprobs,) = self._learner.logprobs([self._canary_ids], [1])
            self._witness.begin()
            self._learner.visit_weights(self._witness.add)
            canary = Canary(self._canary_ids, logprobs, allowed, self._witness.digest())
        version = self._learner.version
        if self._rank:
            return (version, "", 0), None
        handle = replace(self._writer.finish(canary), payload=gathered)
        return (version, handle.fingerprint, handle.num_bytes), handle

    def logprobs(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """As `LearnerGroup.logprobs`."""
        return self._learner.logprobs(token_ids, starts)

    def export(self, path: str) -> tuple[WrittenFile, ...]:
        """Write the snapshot's policy in HF format (rank 0 does), and let go of the snapshot."""
        written = self._snapshot.export(path)
        del self._snapshot
        return written


class RewardModelRank(GroupRank):
    """One rank of the reward model's group."""

    _learner: RewardLearner

    def start(self, spec: RewardSpec) -> int:
        """Build the model; the process id."""
        from capo_ray.learners import RewardLearner

        self._learner = RewardLearner(spec)
        return os.getpid()

    def token_rewards(self, column: Column) -> tuple[FloatArray, ...]:
        """The rewards of this rank's responses."""
        return self._learner.token_rewards(column)

    def update(self, column: Column, labels: Sequence[Label]) -> UpdateReport:
        """The report of one batch."""
        return self._learner.update(column, labels)

    def save(self, path: str) -> tuple[WrittenFile, ...]:
        """Write this rank's shard of the snapshot, and let go of it."""
        written = super().save(path)
        del self._snapshot
        return written
