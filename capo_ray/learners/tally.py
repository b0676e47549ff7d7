"""The figures of an update: summed over cells and ranks, one row per pass, then one number per metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from capo_ray.loss import Figures


class Ranks(Protocol):
    """What combining needs of a backend."""

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor: ...

    def max_over_ranks(self, values: torch.Tensor) -> torch.Tensor: ...


class Tally:
    """Collects the passes of one update."""

    def __init__(self) -> None:
        self._passes: list[dict[str, float]] = []

    @property
    def num_moves(self) -> int:
        """Passes whose move was made."""
        return len(self._passes)

    def combine(self, figures: Sequence[Figures], ranks: Ranks) -> dict[str, float]:
        """Sums by name and maxima as `max_<name>` over all cells of all ranks; every rank gets the same."""
        sums: dict[str, torch.Tensor] = {}
        maxima: dict[str, torch.Tensor] = {}
        for one in figures:
            for name, value in one.sums.items():
                sums[name] = sums[name] + value if name in sums else value
            for name, value in one.maxima.items():
                maxima[name] = torch.maximum(maxima[name], value) if name in maxima else value
        # fp64: a sum over ranks must not depend on their number.
        totals = ranks.sum_over_ranks(torch.stack([v.double() for v in sums.values()])).tolist()
        largest = ranks.max_over_ranks(torch.stack([v.double() for v in maxima.values()])).tolist()
        combined = dict(zip(sums, totals, strict=True))
        return combined | {f"max_{name}": value for name, value in zip(maxima, largest, strict=True)}

    def add_pass(self, combined: dict[str, float], *, lr: float, grad_norm: float, microbatches: int) -> None:
        """Keeps one pass's figures, whose move was made."""
        self._passes.append(combined | {"lr": lr, "grad_norm": grad_norm, "microbatches": float(microbatches)})

    def metrics(self) -> dict[str, float]:
        """The update's metrics; none where no move was made.

        Entropy, KL and mismatch are those of the first pass, before any move of this batch; clipping, ratios and the
        gradient norm are means (or maxima) over the passes.
        """
        if not self._passes:
            return {}
        first, last = self._passes[0], self._passes[-1]
        tokens = max(first["tokens"], 1.0)

        def mean(name: str) -> float:
            return sum(row[name] for row in self._passes) / len(self._passes)

        metrics = {
            "loss/objective_mean": mean("loss"),
            "loss/surrogate_mean": mean("surrogate"),
            "loss/clip_frac": mean("clipped") / tokens,
            "loss/ratio_mean": mean("ratio") / tokens,
            "loss/ratio_max": max(row["max_ratio"] for row in self._passes),
            "loss/entropy_nats": first["entropy"] / tokens,
            "loss/mismatch_kl_nats": first["mismatch_kl"] / tokens,
            "loss/mismatch_max_nats": first["max_mismatch"],
            "learner/grad_norm": mean("grad_norm"),
            "learner/learning_rate": last["lr"],
            "learner/loss_tokens": first["tokens"],
            "learner/padded_tokens": first["padded_tokens"],
            "learner/update_microbatches": first["microbatches"],
        }
        if "kl" in first:
            metrics["loss/kl_nats"] = first["kl"] / tokens
            metrics["loss/kl_last_pass_nats"] = last["kl"] / tokens
        if "picked" in first:
            metrics["loss/covariance_frac"] = first["picked"] / tokens
        return metrics
