"""One rank of the learner group: passes over a batch, one optimizer move each.

    cells -> reference logprobs (if kl_coef) -> num_epochs x { forward, loss, backward per cell; check; move }

Invariants: all ranks call every method in the same order; nothing non-finite moves the weights; the gradient is that of
sum_t w_t * loss_t over the whole batch, however it was cut.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from capo_ray.learners import shards
from capo_ray.learners.microbatch import Microbatch, to_inputs, to_microbatch
from capo_ray.learners.policy import export_model, load_policy
from capo_ray.learners.schedule import learning_rate
from capo_ray.learners.spec import LearnerSpec
from capo_ray.learners.tally import Tally
from capo_ray.learners.zero import ZeroBackend
from capo_ray.loss import Figures, correction_weights, mismatch_figures, policy_loss
from capo_ray.protocols import RunFailed
from capo_ray.types import UpdateReport, WeightedSample


class Learner:
    """The policy under training, as held by one rank."""

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        self.version = 0
        self._moves = 0
        config = spec.learner
        torch.set_num_threads(config.num_threads)
        _seed(spec.seed + spec.rank)
        device = spec.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        policy = load_policy(spec.model_path, spec.dtype, gradient_checkpointing=config.gradient_checkpointing)
        self._model_config = policy.model.config
        self._reference = None
        if spec.loss.kl_coef > 0:  # always the model that the run began with, also after a resume
            self._reference = load_policy(spec.model_path, spec.dtype).requires_grad_(False).eval().to(device)
        self._backend = ZeroBackend(
            policy,
            stage=config.zero_stage,
            dtype=spec.dtype,
            rank=spec.rank,
            world_size=spec.world_size,
            init_method=spec.init_method,
            device=device,
            betas=config.betas,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            deadline_s=config.deadline_s,
        )

    def update(self, column: tuple[tuple[WeightedSample, ...], ...]) -> UpdateReport:
        """The report of one batch trained; `column` is this rank's microbatches, as many as every other rank's."""
        if not column:
            raise ValueError("an update needs at least one microbatch (got 0)")
        started = time.perf_counter()
        cells = [to_microbatch(cell, self._backend.device) for cell in column]
        references = [self._reference_logprobs(cell) for cell in cells]
        starts: list[torch.Tensor] = []  # the learner's own logprobs before the first move
        tally = Tally()
        for _ in range(self.spec.learner.num_epochs):
            self._pass(cells, references, starts, tally)
        self.version += 1
        return UpdateReport(self.version, tally.metrics(), time.perf_counter() - started)

    def _pass(
        self,
        cells: Sequence[Microbatch],
        references: Sequence[torch.Tensor | None],
        starts: list[torch.Tensor],
        tally: Tally,
    ) -> None:
        """One pass over the batch and one move; the first pass fills `starts`."""
        first = not starts
        figures: list[Figures] = []
        for index, cell in enumerate(cells):
            logprobs, entropies = self._backend.forward(cell.inputs, self.spec.temperature)
            if first:
                starts.append(logprobs.detach())
                figures.append(mismatch_figures(starts[index], cell.sampler_logprobs, cell.weights))
            loss, seen = self._loss(cell, logprobs, entropies, references[index], starts[index])
            self._backend.backward(loss)
            figures.append(seen)
        padded = sum(cell.padded_tokens for cell in cells)
        figures.append(Figures(sums={"padded_tokens": torch.tensor(float(padded), device=self._backend.device)}))
        combined = tally.combine(figures, self._backend)
        if not math.isfinite(combined["loss"]):  # the same sum on every rank: all of them stop here
            raise RunFailed(
                f"the batch loss must be finite (got {combined['loss']}); the weights were not moved: check the "
                f"advantages and sampler logprobs, or lower learner.lr and resume from the last checkpoint"
            )
        rate = self._rate()
        norm = self._backend.move(rate)
        self._moves += 1
        tally.add_pass(combined, lr=rate, grad_norm=norm, microbatches=len(cells))

    def _loss(
        self,
        cell: Microbatch,
        logprobs: torch.Tensor,
        entropies: torch.Tensor,
        reference: torch.Tensor | None,
        start: torch.Tensor,
    ) -> tuple[torch.Tensor, Figures]:
        """The loss of one cell and its figures."""
        config = self.spec.loss
        corrections = None
        if config.correction != "none":
            corrections = correction_weights(
                start,
                cell.sampler_logprobs,
                cell.sequences,
                kind=config.correction,
                low=config.correction_low,
                high=config.correction_high,
            )
        return policy_loss(
            logprobs,
            start if config.behaviour == "recompute" else cell.sampler_logprobs,
            cell.advantages,
            cell.weights,
            cell.sequences,
            ratio=config.ratio,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            reference_logprobs=reference,
            kl_coef=config.kl_coef,
            entropies=entropies,
            entropy_coef=config.entropy_coef,
            corrections=corrections,
        )

    @torch.no_grad()
    def _reference_logprobs(self, cell: Microbatch) -> torch.Tensor | None:
        """The frozen reference's logprobs [N] of a cell, at the sampling temperature."""
        if self._reference is None:
            return None
        return self._reference(cell.inputs, self.spec.temperature)[0]

    def _rate(self) -> float:
        """The learning rate of the next move."""
        config = self.spec.learner
        return learning_rate(
            self._moves,
            peak=config.lr,
            total_moves=self.spec.total_updates * config.num_epochs,
            warmup_moves=config.warmup_updates * config.num_epochs,
            schedule=config.schedule,
            min_frac=config.min_lr_frac,
        )

    def named_tensors(self) -> dict[str, torch.Tensor] | None:
        """All weights on the CPU under the model's Hugging Face names on rank 0; None on the other ranks."""
        weights = self._backend.gather_weights()
        if weights is None:
            return None
        named = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        for name, tensor in named.items():
            if not bool(torch.isfinite(tensor).all()):
                raise RunFailed(f"weights must be finite to be published (got NaN or infinity in {name})")
        return named

    @torch.no_grad()
    def logprobs(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """The logprobs of tokens [start, end) of each sequence at temperature 1; the same on every rank."""
        budget = self.spec.learner.microbatch_tokens
        scored: list[tuple[float, ...]] = []
        begin = 0
        while begin < len(token_ids):
            end, longest = begin, 0
            while end < len(token_ids):
                longest = max(longest, len(token_ids[end]))
                if end > begin and longest * (end + 1 - begin) > budget:
                    break
                end += 1
            inputs = to_inputs(token_ids[begin:end], starts[begin:end], self._backend.device)
            flat = self._backend.forward(inputs, 1.0)[0].tolist()
            for ids, start in zip(token_ids[begin:end], starts[begin:end], strict=True):
                scored.append(tuple(flat[: len(ids) - start]))
                flat = flat[len(ids) - start :]
            begin = end
        return tuple(scored)

    def save(self, path: str) -> None:
        """Writes this rank's shard under `path`: weights, Adam's state, place in the schedule, random generators."""
        facts = {
            "version": self.version,
            "moves": self._moves,
            "world_size": self.spec.world_size,
            "zero_stage": self.spec.learner.zero_stage,
            "dtype": self.spec.dtype,
        }
        shards.write_shard(Path(path), self.spec.rank, self._backend.shard(), facts)
        self._backend.barrier()

    def load(self, path: str) -> int:
        """The version restored from `path`; RunFailed when it was saved by another layout of ranks."""
        tensors, facts = shards.read_shard(Path(path), self.spec.rank)
        spec = self.spec
        for key, ours in (
            ("world_size", spec.world_size),
            ("zero_stage", spec.learner.zero_stage),
            ("dtype", spec.dtype),
        ):
            if facts[key] != ours:
                raise RunFailed(
                    f"the checkpoint {path} was saved with {key}={facts[key]} (got {ours}); resume with the same, or "
                    f"export it and start from the exported model"
                )
        self._backend.load_shard(tensors)
        self.version, self._moves = facts["version"], facts["moves"]
        self._backend.barrier()
        return self.version

    def export(self, path: str) -> None:
        """Writes the policy as a Hugging Face model directory."""
        weights = self.named_tensors()
        if weights is not None:
            export_model(self._model_config, weights, self.spec.model_path, Path(path))
        self._backend.barrier()

    def close(self) -> None:
        """Leaves the group; called once."""
        self._backend.close()


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
