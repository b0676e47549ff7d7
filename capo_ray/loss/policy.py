"""The clipped policy-gradient loss in its token, sequence and CISPO forms, with k3 KL and entropy terms.

Invariant: the loss is sum_t weights_t * loss_t; nothing here divides by a count, so microbatches add up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

Ratio = Literal["token", "sequence", "cispo"]


@dataclass(frozen=True)
class Figures:
    """Scalars of a microbatch that combine over microbatches and ranks: `sums` by adding, `maxima` by the maximum."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    maxima: dict[str, torch.Tensor] = field(default_factory=dict)


def policy_loss(
    policy_logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    sequences: torch.Tensor,
    *,
    ratio: Ratio = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    reference_logprobs: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    entropies: torch.Tensor | None = None,
    entropy_coef: float = 0.0,
    corrections: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Figures]:
    """(sum_t w_t [c_t * surrogate_t + kl_coef * k3_t - entropy_coef * H_t], figures); all arguments are [N].

    `sequences` numbers each token's response 0..S-1; `corrections` c_t come from `mismatch.correction_weights`.
    Tokens of weight 0 (those of an empty cell) are not counted in the figures.
    token: PPO's min(rho A, clip(rho) A), as in 2508.02298. sequence: the geometric-mean ratio of the response, in its
    token form s * pi_t / sg(pi_t) (GSPO-token of 2507.18071), equal to the plain one where a response has one
    advantage, and the one that brings each token's advantage to its own logprob. cispo: sg(clip(rho)) A log pi
    (2506.13585).
    """
    log_ratio = policy_logprobs - behaviour_logprobs
    if ratio == "sequence":
        means = sequence_means(log_ratio.detach(), sequences)
        ratios = torch.exp(means + policy_logprobs - policy_logprobs.detach())
    else:
        ratios = torch.exp(log_ratio)
    clipped_ratios = torch.clamp(ratios, 1.0 - clip_low, 1.0 + clip_high)
    if ratio == "cispo":
        surrogate = -clipped_ratios.detach() * advantages * policy_logprobs
    else:
        surrogate = -torch.minimum(ratios * advantages, clipped_ratios * advantages)
    per_token = surrogate if corrections is None else corrections * surrogate
    sums: dict[str, torch.Tensor] = {}
    counted = (weights != 0).to(policy_logprobs.dtype)
    if reference_logprobs is not None:
        k3 = k3_divergence(policy_logprobs, reference_logprobs)
        per_token = per_token + kl_coef * k3
        sums["kl"] = (k3 * counted).sum()
    if entropies is not None:
        if entropy_coef:
            per_token = per_token - entropy_coef * entropies
        sums["entropy"] = (entropies * counted).sum()
    loss = (weights * per_token).sum()
    clipped = torch.where(advantages > 0, ratios > 1.0 + clip_high, (advantages < 0) & (ratios < 1.0 - clip_low))
    sums |= {
        "tokens": counted.sum(),
        "loss": loss,
        "surrogate": (weights * surrogate).sum(),
        "clipped": (clipped * counted).sum(),
        "ratio": (ratios * counted).sum(),
    }
    maxima = {"ratio": (ratios * counted).amax()}
    return loss, Figures(_detached(sums), _detached(maxima))


def k3_divergence(policy_logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """k3 estimate [N] of KL(policy || reference): exp(d) - d - 1 with d = reference - policy, never negative."""
    difference = reference_logprobs - policy_logprobs
    return torch.expm1(difference) - difference


def sequence_means(values: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
    """For each token [N], the mean of `values` [N] over the tokens of its sequence."""
    num_sequences = int(sequences.max()) + 1
    sums = torch.zeros(num_sequences, dtype=values.dtype, device=values.device).index_add_(0, sequences, values)
    counts = torch.bincount(sequences, minlength=num_sequences).clamp(min=1)
    return (sums / counts)[sequences]


def _detached(figures: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in figures.items()}
