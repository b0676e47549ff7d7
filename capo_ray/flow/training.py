"""One batch of credited groups into one update, and the new weights to the engines.

groups -> batch-wide scale of the credit -> entropy control -> Sample -> Batch -> learner -> weights -> engines
       -> reward model, where the credit reads one, beside the learner
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from capo_ray.credit import scale_batch
from capo_ray.flow.entropy_control import EntropyControl
from capo_ray.flow.group import CreditedGroup, to_samples
from capo_ray.flow.off_loop import off_loop
from capo_ray.flow.parts import Parts
from capo_ray.flow.shown import kept
from capo_ray.flow.state import RunState
from capo_ray.packing import build_batch
from capo_ray.protocols import Ledger, RunFailed
from capo_ray.types import Batch, TrajectoryKey, UpdateReport
from capo_ray.work import LEARNER, Work, noting

MAX_NAMED = 5  # samples in a sentence

_log = logging.getLogger(__name__)


class Training:
    """What stands between the slot buffer and the learner."""

    def __init__(self, parts: Parts, state: RunState) -> None:
        self._parts, self._state = parts, state
        self._said_mismatch = False
        self._entropy = EntropyControl(parts.config.loss, state.entropy)
        self._num_nonfinite = 0  # updates in a row

    async def update(self, groups: Sequence[CreditedGroup]) -> tuple[list[CreditedGroup], UpdateReport]:
        """The groups as they were trained, and the learner's report of their batch."""
        config = self._parts.config
        progress = self._state.version / config.run.num_updates
        await self._refresh_reference(progress)
        credits = scale_batch([group.credit for group in groups], config.credit)
        trained = [replace(group, credit=credit) for group, credit in zip(groups, credits, strict=True)]
        trained = self._entropy.weigh(trained)
        num_tokens = sum(group.num_tokens for group in trained)
        batch = await off_loop(self._build_batch, trained, num_tokens=num_tokens)
        watched = frozenset(key for one in kept(trained, config.run, self._state.version + 1) for key in one.keys)
        with noting(errand="update") as works:
            report, second = await asyncio.gather(
                self._parts.learner.update(replace(batch, kl_scale=config.credit.kl_scale(progress), watched=watched)),
                self._update_reward_model(groups),
            )
        self._parts.ledger.note(by_group(works, batch, config.learner.sequence_parallel))
        self._watch(report, second)
        figures = self._entropy.figures(trained)
        if second is not None:
            figures |= {**second.metrics, "time/reward_model_s": second.seconds}
        if report.moved:
            figures |= self._mismatch_figures(report)
            self._entropy.observe(report.metrics["loss/entropy_nats"])
        return trained, replace(report, metrics={**report.metrics, **figures})

    def _build_batch(self, groups: Sequence[CreditedGroup]) -> Batch:
        """The batch of the groups, whose samples are made here and live as long as it."""
        config = self._parts.config
        return build_batch(
            [sample for group in groups for sample in to_samples(group)],
            num_ranks=config.learner.num_columns,
            microbatch_tokens=config.learner.cell_tokens,
            packing=config.learner.packing,
            aggregation=config.loss.aggregation,
            max_response_tokens=config.rollout.max_response_tokens,
            oldest_version=self._state.version - config.stream.max_age,
        )

    def _mismatch_figures(self, report: UpdateReport) -> dict[str, float]:
        """Whether engine and learner differ too much on what the engine sampled; the first time is said."""
        bound, found = self._parts.config.loss.max_mismatch_nats, report.metrics.get("loss/mismatch_kl_nats")
        if found is None:
            return {}
        is_over = not found <= bound
        if is_over and not self._said_mismatch:
            self._said_mismatch = True
            _log.warning(
                "update %d: engine and learner differ by %.3g nats a token on what the engine sampled (above "
                "loss.max_mismatch_nats=%g): compare their dtypes and model files, or lower stream.max_age",
                report.version, found, bound,
            )  # fmt: skip
        return {"loss/mismatch_alarm": float(is_over)}

    async def _update_reward_model(self, groups: Sequence[CreditedGroup]) -> UpdateReport | None:
        """The report of the reward model's update on the batch's groups; None in a run without one."""
        if self._parts.reward_model is None:
            return None
        return await self._parts.reward_model.update([group.group for group in groups])

    def _watch(self, policy: UpdateReport, reward_model: UpdateReport | None) -> None:
        """Raise `RunFailed` when too many updates in a row had a move skipped."""
        second = reward_model is not None and reward_model.skipped
        if not policy.skipped and not second:
            self._num_nonfinite = 0
            return
        self._num_nonfinite += 1
        limit = self._parts.config.run.max_nonfinite_updates
        if self._num_nonfinite < limit:
            return
        whose = "the policy's" if policy.skipped else "the reward model's"
        names = ", ".join(map(str, policy.nonfinite[:MAX_NAMED])) or "none"
        raise RunFailed(
            f"expected a finite loss and gradient, got {limit} update(s) in a row where {whose} was not "
            f"(run.max_nonfinite_updates={limit}); the weights were not moved by them. Samples of the last whose own "
            f"loss is not finite: {names}. Check the advantages and sampler logprobs, or lower "
            f"{'learner' if policy.skipped else 'reward_model'}.lr, and resume from the last checkpoint"
        )

    async def _refresh_reference(self, progress: float) -> None:
        """Measure KL from the present policy from now on, once, where the credit method begins its second stage."""
        config, state = self._parts.config, self._state
        begins = config.credit.reference_from
        if begins is None or not config.loss.kl_coef:
            return
        if progress < begins:  # also of a run that was resumed with more updates, in its first stage once more
            state.reference_version = None
        elif state.reference_version is None:
            await self._parts.learner.refresh_reference()
            state.reference_version = state.version

    async def publish(self) -> float:
        """The seconds until all engines hold the learner's weights."""
        started = time.monotonic()
        with noting(errand="publish") as works:
            await self._parts.publisher.publish()
        self._parts.ledger.note(works.merged())
        return time.monotonic() - started


def by_group(works: Sequence[Work], batch: Batch, shared: int) -> list[Work]:
    """The works of an update; those of the learner's ranks once for each group that they had samples of.

    `shared` ranks compute a column of the batch together.
    """
    found = []
    for work in works:
        groups: list[int | None] = [None]
        if work.tier == LEARNER:
            cells = batch.column(work.actor // shared)
            groups = [*sorted({one.sample.key.group for cell in cells for one in cell})] or groups
        found += [replace(work, group=group) for group in groups]
    return found


def record_update(ledger: Ledger, keys: Sequence[TrajectoryKey], masked: Sequence[int], report: UpdateReport) -> None:
    """Writes down the samples of an update as trained, with how many tokens of each were too old, or as dropped."""
    if report.moved:
        ledger.record(keys, "trained", update=report.version, masked=masked)
        return
    spoilers = set(report.nonfinite)
    spoiled, others = [k for k in keys if k in spoilers], [k for k in keys if k not in spoilers]
    for reason, part in (("nonfinite_loss", spoiled), ("update_skipped", others)):
        if part:
            ledger.record(part, "dropped", reason=reason)
