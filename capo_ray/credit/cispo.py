"""CISPO: GRPO's credit; what is new is that the loss clips the ratio's weight, not its gradient (arXiv 2506.13585)."""

from __future__ import annotations

from capo_ray.config.credit import CreditBase
from capo_ray.credit.grpo import grpo
from capo_ray.types import Group, GroupCredit


def cispo(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """The credit of GRPO; the config requires `loss.ratio=cispo`."""
    return grpo(group, config, progress)
