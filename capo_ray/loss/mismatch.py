"""The gap between the engine that sampled and the learner that trains: how large it is, and three corrections for it.

Both hold the same weights, yet kernels and precisions differ, so a token's logprob differs a little; where it differs a
lot, the token is not really a sample of the policy that the loss assumes. N tokens, all tensors flat [N].
"""

from __future__ import annotations

from typing import Literal

import torch

from capo_ray.loss.policy import Figures, sequence_means

Correction = Literal["none", "truncate", "mask", "geometric_mask"]


def mismatch_figures(learner_logprobs: torch.Tensor, sampler_logprobs: torch.Tensor, weights: torch.Tensor) -> Figures:
    """Figures of KL(sampler || learner): k3 summed over the counted tokens, and the largest difference in nats."""
    counted = (weights != 0).to(learner_logprobs.dtype)
    difference = learner_logprobs - sampler_logprobs
    k3 = torch.expm1(difference) - difference  # the tokens are the sampler's, so exp(d) averages to 1
    return Figures(
        sums={"mismatch_kl": (k3 * counted).sum()},
        maxima={"mismatch": (difference.abs() * counted).amax()},
    )


def correction_weights(
    learner_logprobs: torch.Tensor,
    sampler_logprobs: torch.Tensor,
    sequences: torch.Tensor,
    counted: torch.Tensor,
    *,
    kind: Correction,
    low: float,
    high: float,
) -> torch.Tensor:
    """The factor [N] of each token's surrogate, without gradient, from rho = learner / sampler at the batch's start.

    truncate: min(rho, high) (truncated importance sampling). mask: rho where low <= rho <= high, else 0.
    geometric_mask: 1 where the geometric mean of rho over the response's `counted` tokens (1, else 0) lies in
    [low, high], else 0, which drops whole responses. The published forms differ in detail; these definitions are ours.
    """
    log_rho = (learner_logprobs - sampler_logprobs).detach()
    if kind == "none":
        return torch.ones_like(log_rho)
    rho = torch.exp(log_rho)
    if kind == "truncate":
        return rho.clamp(max=high)
    if kind == "mask":
        return torch.where((rho >= low) & (rho <= high), rho, torch.zeros_like(rho))
    mean_rho = torch.exp(sequence_means(log_rho, sequences, counted))
    return ((mean_rho >= low) & (mean_rho <= high)).to(log_rho.dtype)
