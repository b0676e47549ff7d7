"""Clip-cov and KL-cov (2505.22617): hold back the few tokens whose updates make the entropy collapse.

cov_t = (log pi - mean log pi)(A_t - mean A): the tokens that are already likely and are pushed further. The means are
those of the whole batch, passed in, so that microbatches do not change them. N tokens, all tensors flat [N].
"""

from __future__ import annotations

import torch


def covariances(
    logprobs: torch.Tensor, advantages: torch.Tensor, mean_logprob: float, mean_advantage: float
) -> torch.Tensor:
    """cov_t [N] of each token, without gradient (eq. 10 of 2505.22617)."""
    return (logprobs.detach() - mean_logprob) * (advantages - mean_advantage)


def covariance_band(covariance: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Clip-cov: the tokens [N] (bool) with low < cov < high, among which the paper draws those to freeze at random."""
    return (covariance > low) & (covariance < high)


def covariance_penalties(
    policy_logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, picked: torch.Tensor, coef: float
) -> torch.Tensor:
    """KL-cov: coef * |log pi - log pi_behaviour| [N] of the `picked` (bool) tokens, 0 elsewhere.

    The paper takes those of the largest covariance and drops PPO's clip; here the clip stays (our choice).
    """
    penalty = coef * (policy_logprobs - behaviour_logprobs).abs()
    return torch.where(picked, penalty, torch.zeros_like(penalty))
