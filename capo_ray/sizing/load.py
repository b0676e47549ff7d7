"""What one rank of a learner group is asked to hold."""

from __future__ import annotations

from dataclasses import dataclass

from capo_ray.sizing.adapters import AdapterLoad
from capo_ray.sizing.shapes import Shape


@dataclass(frozen=True, slots=True)
class LearnerLoad:
    """What one rank of a learner group is asked to hold."""

    shape: Shape
    num_params: int
    unit: int
    """Bytes of a weight."""
    zero_stage: int
    num_ranks: int
    tokens: int
    """Padded tokens of the largest microbatch."""
    checkpointing: bool
    reference: bool
    """Whether the device holds a part of one; in host memory it is no term of this rank's."""
    on_gpu: bool
    adapters: AdapterLoad | None = None
    """What alone is trained; None: the model itself."""
    fsdp: bool = False
    """FSDP2 in place of a ZeRO stage, which is then not read."""
    offload: bool = False
    """Whether masters, moments and gradients are in host memory (sizing/offload.py); of FSDP2 and ZeRO-3."""

    @property
    def num_trained(self) -> int:
        """Parameters with masters, moments and gradients."""
        return self.num_params if self.adapters is None else self.adapters.num_params(self.shape)

    @property
    def trained(self) -> str:
        """What a formula calls them."""
        return "N" if self.adapters is None else f"{self.num_trained:,} of adapters"
