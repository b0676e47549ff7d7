"""One rank of the learner group: passes over a batch, one optimizer move each.

    cells -> reference logprobs (if KL counts) -> num_epochs x { forward, loss, backward per cell; check; move }

Invariants: all ranks call every method in the same order; nothing non-finite moves the weights (the move is skipped, on
all ranks alike, and reported); the gradient is that of sum_t w_t * loss_t over the whole batch, however it was cut.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence, Set
from pathlib import Path

import torch

from capo_ray.learners import rank, shards
from capo_ray.learners.adapters import MODEL_FILE, Adapters
from capo_ray.learners.backend import trained
from capo_ray.learners.cell import MAX_TOKEN_LOSS, Cell, figures_of, spoilers
from capo_ray.learners.covariance import picked_tokens
from capo_ray.learners.export import ModelSource
from capo_ray.learners.file_names import FileNames
from capo_ray.learners.microbatch import to_inputs, to_microbatch
from capo_ray.learners.outward import Outward
from capo_ray.learners.policy import load_policy
from capo_ray.learners.pretrained import DTYPES
from capo_ray.learners.reference import AdapterReference, Reference
from capo_ray.learners.schedule import learning_rate
from capo_ray.learners.sequence import SequenceGroup
from capo_ray.learners.spec import LearnerSpec
from capo_ray.learners.tally import Tally
from capo_ray.loss import (
    Figures,
    adaptive_entropy_weights,
    correction_weights,
    covariance_penalties,
    mismatch_figures,
    policy_loss,
)
from capo_ray.protocols import RunFailed
from capo_ray.types import TrajectoryKey, UpdateReport, WeightedSample
from capo_ray.weights import TIED, Onto


class Learner:
    """The policy under training, as held by one rank."""

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        self.version = 0
        self._moves = self._skipped_moves = 0
        self._first_model = ""  # its fingerprint on rank 0, once it was looked at
        device = rank.prepare_process(spec)
        with rank.memory_told(spec, "building the policy"):
            policy = load_policy(spec.model_path, spec.dtype, **rank.load_options(spec))
            self._model_config, names = policy.model.config, FileNames(policy.model)
            self.num_parameters = sum(p.numel() for p in policy.parameters())
            self.weight_bytes = self.num_parameters * DTYPES[spec.dtype].itemsize
            lora = spec.learner.lora
            self._adapters = Adapters(policy.model, lora, spec.model_path, spec.seed) if lora.rank else None
            alone = spec.adapters_alone and self._adapters is not None
            sent = sum(p.numel() for p in trained(policy)) if alone else self.num_parameters
            self.sent_bytes = sent * DTYPES[spec.dtype].itemsize
            self._backend = rank.build_backend(policy, spec, device)
            policy.sequence = rank.meet_sequence(spec, policy)
            self._outward = Outward(self._backend, names, self._adapters, alone)
            self._reference = self._build_reference(policy.sequence) if spec.loss.kl_coef > 0 else None

    def _build_reference(self, sequence: SequenceGroup | None) -> Reference | AdapterReference:
        if self._adapters is not None:
            return AdapterReference(self._backend, self._adapters)
        return Reference(self.spec.model_path, self.spec, self._backend.device, sequence)

    def update(
        self,
        column: tuple[tuple[WeightedSample, ...], ...],
        kl_scale: float = 1.0,
        watched: Set[TrajectoryKey] = frozenset(),
    ) -> UpdateReport:
        """The report of one batch trained; `column` is this rank's microbatches, as many as every other rank's.

        `kl_scale` and `watched` as in `Batch`.
        """
        if not column:
            raise ValueError("an update needs at least one microbatch (got 0)")
        started = time.perf_counter()
        starts: list[tuple[torch.Tensor, torch.Tensor]] = []  # own logprobs and entropies before the first move
        tally = Tally()
        nonfinite: tuple[TrajectoryKey, ...] | None = None
        with rank.memory_told(self.spec, "training on a batch"):
            cells = self._prepare(column, self.spec.loss.kl_coef * kl_scale)
            while nonfinite is None and tally.num_moves < self.spec.learner.num_epochs:
                nonfinite = self._pass(cells, starts, tally)
        # The weights stand, so the passes after a skipped one would only repeat it.
        self._skipped_moves += self.spec.learner.num_epochs - tally.num_moves
        self.version += 1
        return UpdateReport(
            self.version,
            tally.metrics() | {"loss/skipped_moves_total": float(self._skipped_moves)},
            time.perf_counter() - started,
            moved=tally.num_moves > 0,
            skipped=nonfinite is not None,
            nonfinite=nonfinite or (),
            watched=figures_of(watched, cells, starts),
        )

    def _prepare(self, column: Sequence[Sequence[WeightedSample]], kl_coef: float) -> list[Cell]:
        """The cells of a column, each with what the loss needs to know beforehand."""
        spec = self.spec
        microbatches = [to_microbatch(cell, self._backend.device, shared=spec.shared) for cell in column]
        picked_by_cell = picked_tokens(
            column, microbatches, spec.loss, self._backend, spec.world_size, spec.learner.sequence_parallel
        )
        cells = []
        for samples, tokens, picked in zip(column, microbatches, picked_by_cell, strict=True):
            reference = None
            if self._reference is not None and kl_coef > 0:
                reference = self._reference.logprobs(tokens, spec.temperature)
            keys = tuple(weighted.sample.key for weighted in samples)
            cells.append(Cell(keys, tokens, reference, picked, kl_coef))
        return cells

    def _pass(
        self, cells: Sequence[Cell], starts: list[tuple[torch.Tensor, torch.Tensor]], tally: Tally
    ) -> tuple[TrajectoryKey, ...] | None:
        """One pass over the batch and one move; the first pass fills `starts`.

        None; where the move was skipped, the samples of this rank that no finite gradient can come from.
        """
        first = not starts
        figures: list[Figures] = []
        for index, cell in enumerate(cells):
            tokens = cell.tokens
            logprobs, entropies = self._backend.forward(tokens.inputs, self.spec.temperature)
            if first:
                starts.append((logprobs.detach(), entropies.detach()))
                figures.append(mismatch_figures(starts[index][0], tokens.sampler_logprobs, tokens.weights))
            loss, seen = self._loss(cell, logprobs, entropies, starts[index][0])
            figures.append(seen)
            if index + 1 < len(cells):
                self._backend.backward(loss)
        padded = sum(cell.tokens.padded_tokens for cell in cells)
        figures.append(Figures(sums={"padded_tokens": torch.tensor(float(padded), device=self._backend.device)}))
        combined = tally.combine(figures if self.spec.counts else [one.uncounted() for one in figures], self._backend)
        # The same on every rank. A loss can be infinite while its gradient is not; NaN in the last cell's gradient
        # makes every backend skip the move and drop what the cells before it left.
        sound = math.isfinite(combined["loss"]) and combined["max_token_loss"] <= MAX_TOKEN_LOSS
        self._backend.backward(loss if sound else loss * math.nan)
        rate = self._rate()
        norm = self._backend.move(rate)
        if not math.isfinite(norm):
            if not self.spec.counts:
                return ()
            losses = [one.token_losses for one in figures if one.token_losses is not None]
            return spoilers(cells, losses)
        self._moves += 1
        tally.add_pass(combined, lr=rate, grad_norm=norm, microbatches=len(cells))
        return None

    def _loss(
        self, cell: Cell, logprobs: torch.Tensor, entropies: torch.Tensor, start: torch.Tensor
    ) -> tuple[torch.Tensor, Figures]:
        """The loss of one cell and its figures."""
        config, tokens, picked = self.spec.loss, cell.tokens, cell.picked
        behaviour = start if config.behaviour == "recompute" else tokens.sampler_logprobs
        corrections = penalties = None
        if config.correction != "none":
            corrections = correction_weights(
                start,
                tokens.sampler_logprobs,
                tokens.sequences,
                tokens.weights != 0,
                kind=config.correction,
                low=config.correction_low,
                high=config.correction_high,
            )
        entropy_weights = tokens.entropy_weights
        if entropy_weights is not None and config.entropy_control == "lica":
            entropy_weights = adaptive_entropy_weights(
                entropy_weights, entropies, tokens.sequences, tokens.weights != 0
            )
        if picked is not None and config.covariance == "kl":
            penalties = covariance_penalties(logprobs, behaviour, picked, config.covariance_kl_coef)
        loss, figures = policy_loss(
            logprobs,
            behaviour,
            tokens.advantages,
            tokens.weights,
            tokens.sequences,
            ratio=config.ratio,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            corrections=corrections,
            frozen=picked if config.covariance == "clip" else None,
            reference_logprobs=cell.reference,
            kl_coef=cell.kl_coef,
            entropies=entropies,
            entropy_weights=entropy_weights,
            imitation_weights=tokens.imitation_weights,
            penalties=penalties,
        )
        if picked is not None:
            figures.sums["picked"] = (picked & (tokens.weights != 0)).sum()
        return loss, figures

    def refresh_reference(self) -> None:
        """Makes the present weights those from which KL is measured; checkpoints keep them."""
        if self._reference is None:
            raise RunFailed(
                "a reference can be refreshed only where KL counts (got loss.kl_coef=0); set loss.kl_coef, or keep "
                "the credit method in its first stage"
            )
        self._reference.refresh(self._backend, self.version)

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

    def visit_weights(self, visit: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """As `Outward.visit`."""
        self._outward.visit(visit)

    def require_files_weights(self) -> Onto | None:
        """As `Outward.require_files_weights`, for version 0 alone; what adapters are added to where they go alone."""
        tied = frozenset({TIED} if getattr(self._model_config, "tie_word_embeddings", False) else ())
        path, threads = self.spec.model_path, self.spec.learner.num_threads
        self._first_model = self._outward.require_files_weights(path, threads, tied)
        if not self._outward.alone or self._adapters is None:
            return None
        return Onto(self._first_model, self._adapters.scale)

    def named_tensors(self) -> dict[str, torch.Tensor] | None:
        """Copies of all weights on the CPU, finite, named as in the model's files, on rank 0; None on the others."""
        named, _ = self._outward.copies(self.version)
        return named if self.spec.rank == 0 else None

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

    def snapshot(self) -> shards.Snapshot:
        """Copies of what a checkpoint of this moment holds: weights, Adam's state, place in the schedule, generators.

        Rank 0 adds the policy for its export. Collective; writing the snapshot is not.
        """
        facts: dict[str, object] = {"version": self.version, "moves": self._moves, "skipped_moves": self._skipped_moves}
        facts |= {"num_epochs": self.spec.learner.num_epochs, "first_model": self._first_model}
        policy, beside = self._outward.copies(self.version)
        extra = self._reference.snapshot() if self._reference is not None else {}
        if self._adapters is not None and policy:
            extra[MODEL_FILE] = self._adapters.to_files(beside)
        return shards.snapshot(
            self.spec.rank,
            self._backend.shard(),
            {**facts, **rank.layout_of(self.spec), "pieces": self._backend.pieces()},
            extra=extra,
            policy=(ModelSource(self._model_config, self.spec.model_path), policy) if policy else None,
        )

    def load(self, path: str) -> int:
        """The version restored from `path`; RunFailed where another dtype, model or other adapters saved it."""
        facts = rank.restore(self._backend, self.spec, path)
        rank.require_first_model(self.spec, self._first_model, facts, path)
        if self._reference is not None:
            self._reference.load(Path(path))
        self.version, self._moves = facts["version"], rank.moves_of(facts, self.spec.learner.num_epochs)
        self._skipped_moves = facts["skipped_moves"]
        self._backend.barrier()
        return self.version

    def close(self) -> None:
        """Leaves the group; called once."""
        self._backend.close()
