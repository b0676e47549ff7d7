"""GSPO: GRPO's credit; what is new is the ratio of whole sequences in the loss (arXiv 2507.18071, eqs. 5 to 7)."""

from __future__ import annotations

from capo_ray.config.credit import CreditBase
from capo_ray.credit.grpo import grpo
from capo_ray.types import Group, GroupCredit


def gspo(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """The credit of GRPO; the config requires `loss.ratio=sequence`."""
    return grpo(group, config, progress)
