"""The objectives of reward models as naked math: numbers in, numbers out.

    model outputs of a response --response_score--> one score --outcome_loss | pair_loss--> loss      PRIME, iStar, Q-RM
    soft values of its prefixes --soft_value_targets--> targets --squared error--> loss               ETPO-like

n responses; `groups` [n] numbers the group of each and `outcomes` [n] are 1 (right) or 0 (wrong). Responses whose
verdict is invalid do not come here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

Reduction = Literal["sum", "mean", "step_mean", "last"]
NO_TURNS: Mapping[int, float] = MappingProxyType({})


def response_score(outputs: torch.Tensor, reduction: Reduction, num_steps: int) -> torch.Tensor:
    """The one score of a response with token outputs [T] and `num_steps` steps.

    step_mean: the mean over steps of their tokens' sums, as in the code of iStar's authors, which does not saturate the
    loss of pairs with many steps; their paper's score is the sum.
    """
    if reduction == "last":
        return outputs[-1]
    return outputs.sum() / score_divisor(reduction, len(outputs), num_steps)


def score_divisor(reduction: Reduction, num_tokens: int, num_steps: int) -> int:
    """What the sum of a response's outputs is divided by to give its score; not for `last`."""
    return {"sum": 1, "mean": num_tokens, "step_mean": num_steps}[reduction]


def outcome_loss(scores: torch.Tensor, outcomes: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of sigmoid(score) on the outcome (PRIME, 2502.01456), over all responses."""
    return binary_cross_entropy_with_logits(scores, outcomes.to(scores.dtype))


def pair_loss(
    scores: torch.Tensor, outcomes: torch.Tensor, groups: torch.Tensor, *, scale: float = 1.0, margin: float = 0.0
) -> torch.Tensor:
    """The mean of -log sigmoid(scale (s_right - s_wrong) - margin) over the pairs of right and wrong siblings.

    iStar (2509.19199): trajectory DPO, scale 1 on scores that hold beta; Q-RM (2505.23363): scale 0.2, margin 2. Every
    group that has both outcomes counts the same (our choice); the others do not count, and without any the loss is 0.
    """
    pairs = _pairs(outcomes, groups)
    gaps = scores[:, None] - scores[None, :]
    losses = softplus(margin - scale * gaps) * pairs
    per_group = losses.sum(1).new_zeros(int(groups.max()) + 1).index_add(0, groups, losses.sum(1))
    counts = per_group.detach().new_zeros(per_group.shape).index_add(0, groups, pairs.sum(1).to(per_group.dtype))
    return (per_group / counts.clamp(min=1.0)).sum() / (counts > 0).sum().clamp(min=1)


def rank_pairs(scores: torch.Tensor, outcomes: torch.Tensor, groups: torch.Tensor) -> tuple[float, int]:
    """(right/wrong sibling pairs in which the right one scores higher, a tie counting half; number of such pairs)."""
    pairs = _pairs(outcomes, groups)
    gaps = scores[:, None] - scores[None, :]
    won = (gaps > 0).double() + 0.5 * (gaps == 0).double()
    return float((won * pairs).sum()), int(pairs.sum())


def soft_value_targets(
    values: torch.Tensor,
    kl: torch.Tensor,
    outcome: float,
    beta: float,
    decay: float,
    discounts: Mapping[int, float] = NO_TURNS,
) -> torch.Tensor:
    """[A] targets of the soft values of the prefixes before each token of one response (ETPO-like, after 2402.06700).

    V(s_t) = E[Q(s_t, w_t) - beta kl_t] with Q(s_t, w_t) = V(s_t+1) inside the utterance and the outcome at its end,
    where kl_t = log pi(w_t) - log pi_ref(w_t). The expectation is taken by the sampled token and the backup looks
    further ahead with weights `decay`^l (our choices; decay 0 is the backup over one token). `discounts`: by token,
    what the value behind it counts where that is not 1 (gamma, at the end of a turn that another follows).
    """
    turned = torch.ones_like(values)
    for token, discount in discounts.items():
        turned[token] = discount
    ahead = turned * torch.cat([values[1:], values.new_tensor([outcome])])
    errors = (ahead - beta * kl - values).tolist()
    total, totals = 0.0, []
    for error, discount in zip(reversed(errors), reversed(turned.tolist()), strict=True):
        total = error + decay * discount * total
        totals.append(total)
    return values + values.new_tensor(totals[::-1])


def _pairs(outcomes: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """[n, n]: whether response i is right and response j its wrong sibling."""
    siblings = groups[:, None] == groups[None, :]
    return siblings & (outcomes[:, None] == 1) & (outcomes[None, :] == 0)
