"""The clipped policy-gradient loss in its token, sequence and CISPO forms, and the terms that may stand beside it.

Invariant: the loss is sum_t weights_t * loss_t; nothing here divides by a count, so microbatches add up.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

Ratio = Literal["token", "sequence", "cispo"]


@dataclass(frozen=True)
class Figures:
    """Scalars of a microbatch that combine over microbatches and ranks: `sums` by adding, `maxima` by the maximum.

    `token_losses` [N] are the terms of the loss, for who looks for the one that spoiled it.
    """

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    maxima: dict[str, torch.Tensor] = field(default_factory=dict)
    token_losses: torch.Tensor | None = None

    def uncounted(self) -> Figures:
        """The same where another rank has counted it: sums of zero."""
        return replace(self, sums={name: torch.zeros_like(value) for name, value in self.sums.items()})


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
    corrections: torch.Tensor | None = None,
    frozen: torch.Tensor | None = None,
    reference_logprobs: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    entropies: torch.Tensor | None = None,
    entropy_weights: torch.Tensor | None = None,
    imitation_weights: torch.Tensor | None = None,
    penalties: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Figures]:
    """(sum_t w_t [c_t * surrogate_t + kl_coef * k3_t - e_t * H_t - m_t * log pi_t + penalty_t], figures); all are [N].

    `sequences` numbers each token's response 0..S-1; `corrections` c_t come from `mismatch.correction_weights`, and the
    tokens that are `frozen` (bool) have a surrogate without gradient. `entropy_weights` e_t and `imitation_weights`
    m_t: see `Sample`. Tokens of weight 0 (too old, or of an empty cell) count in no figure and no mean.
    """
    acting = policy_logprobs if frozen is None else torch.where(frozen, policy_logprobs.detach(), policy_logprobs)
    counted = (weights != 0).to(policy_logprobs.dtype)
    ratios = likelihood_ratios(acting, behaviour_logprobs, sequences, ratio, counted)
    surrogate = surrogate_loss(acting, ratios, advantages, ratio, clip_low, clip_high)
    per_token = surrogate if corrections is None else corrections * surrogate
    sums = {
        "tokens": counted.sum(),
        "surrogate": (weights * surrogate).sum(),
        "clipped": (is_clipped(ratios, advantages, ratio, clip_low, clip_high) * counted).sum(),
        "ratio": (ratios * counted).sum(),
    }
    if reference_logprobs is not None:
        k3 = k3_divergence(policy_logprobs, reference_logprobs)
        per_token = per_token + kl_coef * k3
        sums["kl"] = (k3 * counted).sum()
    if entropies is not None:
        sums["entropy"] = (entropies * counted).sum()
        per_token = per_token if entropy_weights is None else per_token - entropy_weights * entropies
    if imitation_weights is not None:
        per_token = per_token - imitation_weights * policy_logprobs
    per_token = per_token if penalties is None else per_token + penalties
    token_losses = weights * per_token
    sums["loss"] = loss = token_losses.sum()
    maxima = {"ratio": (ratios * counted).amax(), "token_loss": token_losses.abs().amax()}
    return loss, Figures(_detached(sums), _detached(maxima), token_losses.detach())


def likelihood_ratios(
    policy_logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    sequences: torch.Tensor,
    ratio: Ratio,
    counted: torch.Tensor,
) -> torch.Tensor:
    """pi / behaviour of each token [N]; with ratio=sequence their geometric mean over the response's `counted` tokens.

    sequence is in its token form s * pi_t / sg(pi_t) (GSPO-token of 2507.18071), equal to the plain one where a
    response has one advantage, and the one that brings each token's advantage to its own logprob.
    """
    log_ratio = policy_logprobs - behaviour_logprobs
    if ratio == "sequence":
        means = sequence_means(log_ratio.detach(), sequences, counted)
        return torch.exp(means + policy_logprobs - policy_logprobs.detach())
    return torch.exp(log_ratio)


def surrogate_loss(
    policy_logprobs: torch.Tensor,
    ratios: torch.Tensor,
    advantages: torch.Tensor,
    ratio: Ratio,
    clip_low: float,
    clip_high: float,
) -> torch.Tensor:
    """-min(rho A, clip(rho) A) [N], PPO's as in 2508.02298; cispo: -sg(clip(rho)) A log pi (2506.13585)."""
    clipped = torch.clamp(ratios, 1.0 - clip_low, 1.0 + clip_high)
    if ratio == "cispo":
        return -clipped.detach() * advantages * policy_logprobs
    return -torch.minimum(ratios * advantages, clipped * advantages)


def is_clipped(
    ratios: torch.Tensor, advantages: torch.Tensor, ratio: Ratio, clip_low: float, clip_high: float
) -> torch.Tensor:
    """Which tokens [N] the clip takes hold of: PPO's on the side that the advantage pushes to, CISPO's on both."""
    above, below = ratios > 1.0 + clip_high, ratios < 1.0 - clip_low
    if ratio == "cispo":
        return (advantages != 0) & (above | below)
    return torch.where(advantages > 0, above, (advantages < 0) & below)


def k3_divergence(policy_logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """k3 estimate [N] of KL(policy || reference): exp(d) - d - 1 with d = reference - policy, never negative."""
    difference = reference_logprobs - policy_logprobs
    return torch.expm1(difference) - difference


def sequence_means(values: torch.Tensor, sequences: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """For each token [N], the mean of `values` [N] over the tokens of its sequence that are `counted` (1, else 0)."""
    zeros = torch.zeros(int(sequences.max()) + 1, dtype=values.dtype, device=values.device)
    sums = zeros.index_add(0, sequences, values * counted)
    counts = zeros.index_add(0, sequences, counted.to(values.dtype)).clamp(min=1)
    return (sums / counts)[sequences]


def _detached(figures: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in figures.items()}
