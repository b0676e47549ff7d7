"""Supervised training: lessons in, updates out, with the checkpoints, the metrics and the ends of a run.

    lessons -> examples (framed, tokenized) -> Sample with imitation weights -> Batch -> learner -> metrics, checkpoint

Loss of an update = weighted sum of -log pi over its tokens / sum of the weights in the whole batch. A completion token
weighs 1, a prompt token `prompt_loss_weight` (0 by default). An advantage of 0 and an imitation weight leave nothing
else of the policy loss.

Invariant: an end between two updates leaves a checkpoint of the last one, whose cursor is that of its examples; a run
that goes on from it sees the examples, the moves and the losses that it would have seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from capo_ray.arrays import Runs
from capo_ray.config import SftConfig
from capo_ray.flow.parts import SftParts
from capo_ray.flow.saving import Saver
from capo_ray.flow.state import SftState
from capo_ray.packing import build_batch
from capo_ray.prompts import frame_question
from capo_ray.protocols import RunFailed, Tokenizer
from capo_ray.types import Batch, Problem, Sample, TrajectoryKey, UpdateReport, VersionRun

LOGGED = (
    "loss/objective_mean",
    "loss/entropy_nats",
    "loss/skipped_moves_total",
    "learner/grad_norm",
    "learner/learning_rate",
    "learner/loss_tokens",
    "learner/padded_tokens",
    "learner/update_microbatches",
)
"""What of the learner's figures says something here: there is no sampler to differ from, and nothing to clip."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and completion (end-of-sequence included), the first `num_prompt_tokens` being the prompt."""

    token_ids: tuple[int, ...]
    num_prompt_tokens: int


class Supervised:
    """One supervised run over `parts`, from `state` on."""

    def __init__(self, parts: SftParts, state: SftState) -> None:
        self.parts, self.state = parts, state
        self.saver = Saver(parts, state, self._moment, on_failure=lambda: None)
        self.early = ""
        """Why it made fewer than `run.num_updates` updates; empty where it did not."""
        self.asked_to_end = False
        """Whether a signal ended it."""
        self._stop, self._streaming = "", False
        self._update: asyncio.Future[UpdateReport] | None = None
        self._started = time.monotonic()

    async def run(self) -> None:
        """Returns once the run has ended as asked, and its last update is in a checkpoint."""
        try:
            self._streaming = True
            self.early = await self._train()
            await self.saver.save_last()
        except Exception as failure:
            await self.saver.rescue(failure, self._update)
            raise
        finally:
            self._streaming = False

    def stop(self, reason: str) -> bool:
        """Ask the run to save a checkpoint and end; False where it has nothing to save just now."""
        if self._streaming:
            self._stop = reason
        return self._streaming

    async def _train(self) -> str:
        run = self.parts.config.run
        self.parts.progress.update(phase="training", update=self.state.version)
        while self.state.version < run.num_updates:
            self.saver.raise_if_failed()
            if self._stop:
                self.asked_to_end = True
                return self._stop
            await self._train_batch()
            if self.state.version % run.checkpoint_every == 0 or self.state.version == run.num_updates:
                await self.saver.begin()
            over = run.max_minutes and time.monotonic() - self._started > 60 * run.max_minutes
            if over and self.state.version < run.num_updates:
                return f"run.max_minutes={run.max_minutes} is over"
        return ""

    async def _train_batch(self) -> None:
        batch = await asyncio.to_thread(self._next_batch)
        self._update = asyncio.ensure_future(self.parts.learner.update(batch))
        # Shielded: an end of the run lets an update come to its own, which is then saved with it.
        report = await asyncio.shield(self._update)
        self.state.version = report.version
        if report.skipped:
            raise RunFailed(
                f"loss or gradient of update {report.version - 1} is not finite: lower learner.lr "
                f"({self.parts.config.learner.lr:g})"
            )
        self._log(report)

    def _log(self, report: UpdateReport) -> None:
        figures = {name: report.metrics[name] for name in LOGGED if name in report.metrics}
        figures |= {
            "sft/examples_total": float(self.state.num_examples),
            "sft/too_long_total": float(self.state.num_too_long),
            "time/update_s": report.seconds,
        }
        self.parts.tracker.log(figures, update=self.state.version)
        self.parts.progress.update(update=self.state.version, loss=figures["loss/objective_mean"])

    def _next_batch(self) -> Batch:
        config, state = self.parts.config, self.state
        examples: list[Example] = []
        skipped = 0
        while len(examples) < config.batch_size:
            example = to_example(self.parts.lessons.next_problem(), config, self.parts.tokenizer)
            if len(example.token_ids) <= config.max_tokens:
                examples.append(example)
                continue
            skipped += 1
            if skipped > 100 * config.batch_size:
                raise RunFailed(f"{skipped} examples are longer than max_tokens={config.max_tokens}: raise it")
        state.num_too_long += skipped
        state.num_examples += len(examples)
        return imitation_batch(examples, config, state.version)

    @property
    def seconds(self) -> float:
        """Those of all sessions so far."""
        return self.state.seconds + time.monotonic() - self._started

    def _moment(self) -> dict[str, Any]:
        return {**asdict(replace(self.state, seconds=self.seconds)), "lessons": dict(self.parts.lessons.state())}


def to_example(lesson: Problem, config: SftConfig, tokenizer: Tokenizer) -> Example:
    """A lesson as the learner reads it; the prompts of files are framed as in `capo-ray train`."""
    if config.data.kind == "chains":
        prompt_ids = tuple(tokenizer.encode(lesson.prompt))
    else:
        prompt_ids = frame_question(tokenizer, lesson.prompt, config.model)
    # A completion is trusted: what it spells of control tokens (`<think>`) the policy shall learn to write.
    return Example((*prompt_ids, *tokenizer.encode(lesson.answer), tokenizer.eos_id), len(prompt_ids))


def imitation_batch(examples: Sequence[Example], config: SftConfig, update: int) -> Batch:
    """The examples as one batch of samples, each trained from the first token that weighs anything."""
    starts = [1 if config.prompt_loss_weight else example.num_prompt_tokens for example in examples]
    prompts = [example.num_prompt_tokens - start for example, start in zip(examples, starts, strict=True)]
    totals = [len(example.token_ids) - start for example, start in zip(examples, starts, strict=True)]
    weight = config.prompt_loss_weight * sum(prompts) + sum(totals) - sum(prompts)
    scale = sum(totals) / weight  # packing divides by the number of tokens, not by their weights
    samples = [
        Sample(
            key=TrajectoryKey("example", update, index),
            token_ids=np.array(example.token_ids, np.int32),
            sampler_logprobs=np.zeros(total, np.float32),
            advantages=Runs.constant(0.0, total),
            versions=(VersionRun(update, total),),
            imitation_weights=Runs.of([config.prompt_loss_weight * scale] * prompt + [scale] * (total - prompt)),
        )
        for index, (example, prompt, total) in enumerate(zip(examples, prompts, totals, strict=True))
    ]
    return build_batch(
        samples,
        num_ranks=config.learner.num_columns,
        microbatch_tokens=config.learner.cell_tokens,
        packing=config.learner.packing,
        aggregation="token_mean",
    )
