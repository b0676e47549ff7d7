"""Low-rank adapters in place of a whole model's training."""

from __future__ import annotations

from pydantic import Field

from capo_ray.config.base import Idle, Section


class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685): beside each target's frozen weight W two matrices are trained.

    Its output is that of W + alpha / rank * B A. Dropout has no key: the ratio compares two passes over the same
    tokens, which must be equal.
    """

    rank: int = Field(0, ge=0)
    """Rows of A and columns of B; 0: the model itself is trained."""
    alpha: float = Field(32.0, gt=0)
    """Weight of the adapters, over the rank."""
    targets: tuple[str, ...] = ()
    """Linear layers of each block by their last name, as `[q_proj,v_proj]`; empty: all of them, the experts of a
    mixture left out."""

    def idle(self) -> tuple[Idle, ...]:
        """What a whole model's training leaves unread."""
        why = "with learner.lora.rank=0, which trains the model itself; remove it or set learner.lora.rank"
        return (Idle(("alpha", "targets"), self.rank == 0, why),)
