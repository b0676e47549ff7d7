"""What each method's reward model gives per token, and what it is trained for: one line of the table per method.

    model --head--> output x [N]: beta (log pi_phi - baseline), or a scalar --reduction--> score of a response --loss

The token rewards that the credit rule reads are the outputs themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from capo_ray.config.reward_model import RewardModelConfig
from capo_ray.loss import Reduction, outcome_loss, pair_loss

ScoreLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, RewardModelConfig], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """`head`: the log-probability of each token, or a scalar read at each token or at the prefix before it.

    `loss` is of (scores [n], outcomes [n], groups [n], config); None: each prefix's soft value is fitted to its backup
    (`loss.soft_value_targets`), and scores serve to rank siblings alone. `pairs_only`: a batch without a right and a
    wrong sibling teaches nothing. `quotes_only`: it learns from the first steps of consistent responses
    (`reward_batch.consistent`).
    """

    head: Literal["logprob", "token_scalar", "prefix_scalar"]
    baseline: Literal["none", "reference", "sampler"]
    reduction: Reduction
    loss: ScoreLoss | None
    pairs_only: bool = False
    quotes_only: bool = False


def _prime(
    scores: torch.Tensor, outcomes: torch.Tensor, groups: torch.Tensor, config: RewardModelConfig
) -> torch.Tensor:
    return outcome_loss(scores, outcomes)


def _istar(
    scores: torch.Tensor, outcomes: torch.Tensor, groups: torch.Tensor, config: RewardModelConfig
) -> torch.Tensor:
    return pair_loss(scores, outcomes, groups)


def _qrm(scores: torch.Tensor, outcomes: torch.Tensor, groups: torch.Tensor, config: RewardModelConfig) -> torch.Tensor:
    return pair_loss(scores, outcomes, groups, scale=config.pair_scale, margin=config.pair_margin)


OBJECTIVES: dict[str, Objective] = {
    "prime": Objective("logprob", "reference", "sum", _prime),
    "istar": Objective("logprob", "sampler", "sum", _istar, pairs_only=True),
    "qrm": Objective("token_scalar", "none", "mean", _qrm, pairs_only=True),
    "etpo": Objective("prefix_scalar", "none", "last", None),
    "eapo": Objective("logprob", "reference", "sum", _istar, pairs_only=True, quotes_only=True),
}


def objective_of(method: str, config: RewardModelConfig) -> Objective:
    """The line of the table, Q-RM's with the head and iStar's with the score that the config asks for.

    Q-RM's optimal logits are those of a policy phi with log phi = (Q - V) / beta (2505.23363), so the log-probability
    of a language model can stand for the scalar; that it begins as the policy's own is our choice.
    """
    objective = OBJECTIVES[method]
    if method == "istar":
        return replace(objective, reduction=config.score)
    return replace(objective, head="logprob") if method == "qrm" and config.head == "language_model" else objective
