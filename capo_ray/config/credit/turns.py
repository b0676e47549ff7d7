"""Methods that read what an environment says of each turn."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from capo_ray.config.credit.base import CreditBase
from capo_ray.config.credit.requests import Turns


class GigpoConfig(CreditBase):
    """GiGPO (2505.10978): episodes against their group, and turns against those from the same state."""

    source: ClassVar[str] = "2505.10978"
    rule: ClassVar[str] = "capo_ray.credit.gigpo:gigpo"
    method: Literal["gigpo"] = "gigpo"
    w_step: float = Field(1.0, ge=0)
    """Weight of the advantage among turns from the same state (omega)."""
    gamma: float = Field(0.95, ge=0, le=1)
    """Discount of what comes after a turn."""
    normalisation: Literal["std", "none"] = "std"
    """What both advantages are divided by: the deviation, or 1."""
    illegal_penalty: float = Field(0.1, ge=0)
    """Taken off a turn that was no move (the authors' runs: 0.1)."""
    w_reward: float = Field(0.0, ge=0)
    """Weight of the environment's own reward of a turn beside the outcome (ours; 0: the outcome alone)."""

    def evidence(self) -> tuple[Turns, ...]:
        """State, reward and legality of each turn."""
        return (Turns(),)
