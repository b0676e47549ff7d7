"""One rank of the reward model's group: token rewards out, judged responses in.

    column --forward--> outputs [N] --> scores of all responses, on every rank --loss--> slope per score and token
           --forward, backward of sum(slope * output)--> one move per pass

The scores are exchanged before the gradient is made, so siblings may lie in any cells of any ranks: the gradient is
that of the loss over the whole batch, however it was cut. The price is one more forward pass.

Invariants: all ranks call every method in the same order and decide alike, from the labels that all of them hold;
nothing non-finite moves the weights: such a move is skipped, on all ranks alike, and reported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from capo_ray.arrays import FloatArray
from capo_ray.learners import rank, shards
from capo_ray.learners.microbatch import Microbatch, to_microbatch
from capo_ray.learners.policy import Policy, load_policy
from capo_ray.learners.reference import Reference
from capo_ray.learners.reward_batch import Label, has_pairs
from capo_ray.learners.reward_objectives import objective_of
from capo_ray.learners.scalar import ScalarModel, load_scalar_model
from capo_ray.learners.spec import RewardSpec
from capo_ray.loss import rank_pairs, response_score, score_divisor, soft_value_targets
from capo_ray.types import UpdateReport, WeightedSample

Column = Sequence[Sequence[WeightedSample]]


@dataclass(frozen=True)
class _Cell:
    """A microbatch, and of its samples: lengths, where turns but the last end, and places among the labels [S].

    `reference` is [N] or None.
    """

    tokens: Microbatch
    lengths: list[int]
    turn_ends: list[list[int]]
    places: list[int]
    reference: torch.Tensor | None


@dataclass(frozen=True)
class _Labels:
    """Outcome, group and number of steps of each labelled response [n]."""

    places: dict[str, int]
    outcomes: torch.Tensor
    groups: torch.Tensor
    num_steps: list[int]


STOP_WINDOW = 5
"""Updates over which `reward_model.stop_drop` compares."""


class PairWatch:
    """Whether a model's accuracy on pairs that it has not learned from has fallen (`reward_model.stop_drop`)."""

    def __init__(self, drop: float) -> None:
        self._drop = drop
        self.seen: list[float] = []

    def see(self, accuracy: float) -> None:
        """What one update found before it."""
        self.seen.append(accuracy)

    @property
    def fell(self) -> bool:
        """Whether a mean of `STOP_WINDOW` updates was ever that far below the best such mean before it."""
        seen = self.seen
        means = [sum(seen[i : i + STOP_WINDOW]) / STOP_WINDOW for i in range(len(seen) - STOP_WINDOW + 1)]
        best = accumulate(means, max)
        return self._drop > 0 and any(top - mean >= self._drop for top, mean in zip(best, means, strict=True))


class RewardLearner:
    """The reward model, as held by one rank."""

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self.version = self._skipped_moves = 0
        self._objective = objective_of(spec.method, spec.reward_model)
        self._watch = PairWatch(spec.reward_model.stop_drop)
        device = rank.prepare_process(spec)
        # The backups of `etpo` count KL to the reference; where that costs nothing no reference is held.
        counts_kl = self._objective.loss is None and spec.kl_coef > 0
        reads_reference = self._objective.baseline == "reference" or counts_kl
        with rank.memory_told(spec, "building the reward model"):
            self._backend = rank.build_backend(self._build_model(), spec, device)
            self._reference = Reference(spec.reference_path, spec, self._backend.device) if reads_reference else None

    def _build_model(self) -> Policy | ScalarModel:
        spec, options = self.spec, rank.load_options(self.spec)
        if self._objective.head == "logprob":
            return load_policy(spec.model_path, spec.dtype, **options)
        at_token = self._objective.head == "token_scalar"
        return load_scalar_model(spec.model_path, spec.dtype, at_token=at_token, seed=spec.seed, **options)

    @torch.no_grad()
    def token_rewards(self, column: Column) -> tuple[FloatArray, ...]:
        """[T] rewards of each response of this rank's column, in the column's order."""
        rows: list[FloatArray] = []
        for samples in column:
            cell = self._to_cell(samples, {}, with_reference=self._objective.baseline == "reference")
            if cell.lengths:
                flat = self._outputs(cell).float().cpu().numpy()
                rows.extend(np.split(flat, np.cumsum(cell.lengths)[:-1]))
            else:
                self._outputs(cell)  # the other ranks' collectives wait for it
        return tuple(rows)

    def update(self, column: Column, labels: Sequence[Label]) -> UpdateReport:
        """The report of one batch; `column` is this rank's part, `labels` are those of all responses of all ranks.

        A batch without a right and a wrong sibling moves nothing where the objective needs pairs, and none does once
        the accuracy on new pairs has fallen.
        """
        started = time.perf_counter()
        device = self._backend.device
        known = _Labels(
            {str(label.key): place for place, label in enumerate(labels)},
            torch.tensor([label.outcome for label in labels], device=device),
            torch.tensor([label.group for label in labels], device=device),
            [label.num_steps for label in labels],
        )
        metrics: dict[str, float] = {}
        moved, skipped = not self._watch.fell, False
        if moved and labels and (has_pairs(labels) or not self._objective.pairs_only):
            cells = [self._to_cell(samples, known.places, self._reference is not None) for samples in column]
            passes: list[dict[str, float]] = []
            for _ in range(self.spec.reward_model.num_epochs):
                made = self._pass(cells, known)
                if made is None:  # the weights stand: the passes to come would only repeat it
                    skipped = True
                    self._skipped_moves += self.spec.reward_model.num_epochs - len(passes)
                    break
                passes.append(made)
            moved = bool(passes)
            # Accuracy and loss are those of the weights that have not yet seen this batch.
            metrics = {**(passes[0] if passes else {}), "reward_model/skipped_moves_total": float(self._skipped_moves)}
        if "reward_model/accuracy_frac" in metrics:
            self._watch.see(metrics["reward_model/accuracy_frac"])
        if self.spec.reward_model.stop_drop:
            metrics = metrics | {"reward_model/accuracy_alarm": float(self._watch.fell)}
        self.version += 1
        return UpdateReport(self.version, metrics, time.perf_counter() - started, moved=moved, skipped=skipped)

    def _to_cell(self, samples: Sequence[WeightedSample], places: dict[str, int], with_reference: bool) -> _Cell:
        tokens = to_microbatch(samples, self._backend.device, shared=self.spec.shared)
        reference = None
        if with_reference and self._reference is not None:
            reference = self._reference.logprobs(tokens, self.spec.temperature)
        lengths = [w.sample.num_response_tokens for w in samples]
        ends = [list(accumulate(end - start for start, end in w.sample.spans))[:-1] for w in samples]
        return _Cell(tokens, lengths, ends, [places[str(w.sample.key)] for w in samples] if places else [], reference)

    def _outputs(self, cell: _Cell) -> torch.Tensor:
        """What the model gives each token of a cell, [N]."""
        outputs = self._backend.forward(cell.tokens.inputs, self.spec.temperature)[0]
        if self._objective.baseline == "none":
            return outputs
        baseline = cell.reference if self._objective.baseline == "reference" else cell.tokens.sampler_logprobs
        assert baseline is not None
        return self.spec.reward_model.beta * (outputs - baseline)

    def _pass(self, cells: Sequence[_Cell], known: _Labels) -> dict[str, float] | None:
        """The figures of one pass over the batch and one move; None where it was skipped."""
        with torch.no_grad():
            outputs = [self._outputs(cell) for cell in cells]
        scores = self._scores(cells, outputs, known)
        if self._objective.loss is None:
            loss, slopes = self._fit_values(cells, outputs, known)
        else:
            loss, slopes = self._fit_scores(cells, scores, known)
        if not math.isfinite(loss):  # the same on every rank
            return None
        for cell, slope in zip(cells, slopes, strict=True):
            self._backend.backward((self._outputs(cell) * slope).sum())
        norm = self._backend.move(self.spec.reward_model.lr)
        if not math.isfinite(norm):
            return None
        metrics = {"reward_model/loss_mean": loss, "reward_model/grad_norm": norm}
        right, count = rank_pairs(scores, known.outcomes, known.groups)
        if count:
            metrics["reward_model/accuracy_frac"] = right / count
        return metrics

    def _scores(self, cells: Sequence[_Cell], outputs: Sequence[torch.Tensor], known: _Labels) -> torch.Tensor:
        """The scores [n] of all labelled responses, fp64, the same on every rank; collective."""
        scores = torch.zeros(len(known.places), dtype=torch.float64, device=self._backend.device)
        for cell, output in zip(cells, outputs, strict=True):
            rows = output.double().split(cell.lengths) if cell.lengths else ()
            for place, row in zip(cell.places, rows, strict=True):
                scores[place] = response_score(row, self._objective.reduction, known.num_steps[place])
        return self._backend.sum_over_ranks(scores)

    def _fit_scores(
        self, cells: Sequence[_Cell], scores: torch.Tensor, known: _Labels
    ) -> tuple[float, list[torch.Tensor]]:
        """The loss of the scores, and for each cell its slope by each output [N]."""
        assert self._objective.loss is not None
        leaf = scores.detach().requires_grad_()
        loss = self._objective.loss(leaf, known.outcomes, known.groups, self.spec.reward_model)
        (by_score,) = torch.autograd.grad(loss, leaf)
        slopes = []
        for cell in cells:
            slope = torch.zeros_like(cell.tokens.weights)
            if cell.lengths:
                sizes = [
                    (length, known.num_steps[place]) for length, place in zip(cell.lengths, cell.places, strict=True)
                ]
                divisors = [score_divisor(self._objective.reduction, *size) for size in sizes]
                per_token = by_score[cell.places] / torch.tensor(divisors, device=slope.device)
                slope = per_token.to(slope.dtype)[cell.tokens.sequences]
            slopes.append(slope)
        return float(loss.detach()), slopes

    def _fit_values(
        self, cells: Sequence[_Cell], outputs: Sequence[torch.Tensor], known: _Labels
    ) -> tuple[float, list[torch.Tensor]]:
        """As `_fit_scores`, for half the mean square of soft value minus backup, every response counting the same."""
        spec, total, slopes = self.spec, torch.zeros((), dtype=torch.float64, device=self._backend.device), []
        for cell, values in zip(cells, outputs, strict=True):
            slope = torch.zeros_like(values)
            if cell.lengths:
                kl = torch.zeros_like(values)
                if cell.reference is not None:
                    kl = cell.tokens.sampler_logprobs - cell.reference
                rows = values.split(cell.lengths), kl.split(cell.lengths)
                errors = [
                    v - soft_value_targets(v, k, float(known.outcomes[place]), spec.kl_coef, spec.trace_decay, turns)
                    for v, k, place, turns in zip(*rows, cell.places, map(self._discounts, cell.turn_ends), strict=True)
                ]
                slope = torch.cat([error / (len(known.places) * len(error)) for error in errors])
                total += 0.5 * (slope * torch.cat(errors)).sum()
            slopes.append(slope)
        return float(self._backend.sum_over_ranks(total)), slopes

    def _discounts(self, turn_ends: Sequence[int]) -> dict[int, float]:
        """What the value behind a token counts, where that is not 1: at the last of each turn but the last."""
        return {end - 1: self.spec.turn_discount for end in turn_ends}

    def snapshot(self) -> shards.Snapshot:
        """Copies of what a checkpoint of this moment holds of this rank."""
        facts = {
            "version": self.version,
            "skipped_moves": self._skipped_moves,
            "pair_accuracies": list(self._watch.seen),
            **self._layout(),
        }
        return shards.snapshot(self.spec.rank, self._backend.shard(), facts)

    def load(self, path: str) -> int:
        """The version restored from `path`; RunFailed when it was saved by another layout of ranks."""
        tensors, facts = shards.read_shard(Path(path), self.spec.rank)
        rank.require_layout(self._layout(), facts, path)
        self._backend.load_shard(tensors)
        self.version, self._skipped_moves = facts["version"], facts["skipped_moves"]
        self._watch.seen = list(facts.get("pair_accuracies", ()))
        self._backend.barrier()
        return self.version

    def _layout(self) -> dict[str, object]:
        return {
            "credit.method": self.spec.method,
            "reward_model.head": self.spec.reward_model.head,
            **rank.layout_of(self.spec),
        }

    def close(self) -> None:
        """Leaves the group; called once."""
        self._backend.close()
