"""Clip-cov and KL-cov (2505.22617): rein in the few tokens whose updates make the entropy collapse.

cov_t = (log pi_t - mean log pi)(A_t - mean A): the tokens that are already likely and are pushed further. The means are
those of the whole batch, passed in, so that microbatches do not change them. N tokens, all tensors flat [N].
"""

from __future__ import annotations

import torch


def covariances(
    logprobs: torch.Tensor, advantages: torch.Tensor, mean_logprob: float, mean_advantage: float
) -> torch.Tensor:
    """cov_t [N] of each token, without gradient (eq. 10 of 2505.22617)."""
    return (logprobs.detach() - mean_logprob) * (advantages - mean_advantage)


def detached_by_covariance(
    policy_logprobs: torch.Tensor, covariance: torch.Tensor, low: float, high: float, keep: torch.Tensor
) -> torch.Tensor:
    """Clip-cov: `policy_logprobs` [N] without gradient where low < cov < high and `keep` [N] (bool) is False.

    The paper draws the clipped tokens at random among those in the band; the caller draws, so the choice can be seeded.
    """
    clipped = (covariance > low) & (covariance < high) & ~keep
    return torch.where(clipped, policy_logprobs.detach(), policy_logprobs)


def penalised_by_covariance(
    policy_logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, covariance: torch.Tensor, threshold: float
) -> torch.Tensor:
    """KL-cov: the penalty |log pi - log pi_behaviour| [N] of the tokens with cov >= threshold, 0 elsewhere.

    The paper takes the top share of a batch; the threshold is that share's smallest covariance.
    """
    penalty = (policy_logprobs - behaviour_logprobs).abs()
    return torch.where(covariance >= threshold, penalty, torch.zeros_like(penalty))
