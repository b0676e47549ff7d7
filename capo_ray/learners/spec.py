"""What one rank of a learner group is made from: plain values that travel to another process."""

from __future__ import annotations

from dataclasses import dataclass

from capo_ray.config.loss import LossConfig
from capo_ray.config.reward_model import RewardModelConfig
from capo_ray.config.sections import LearnerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """What every rank knows, whatever it trains; `temperature` is the sampling temperature.

    `init_method` is where the ranks meet, as `tcp://host:port`; a single rank needs none. `device` is `auto`, `cpu` or
    `cuda`. The process that makes a learner belongs to it: a process group is global.
    """

    model_path: str
    dtype: str
    learner: LearnerConfig
    temperature: float
    rank: int = 0
    world_size: int = 1
    init_method: str = ""
    seed: int = 0
    device: str = "auto"

    @property
    def shared(self) -> bool:
        """Whether microbatches are rows of segments in which siblings share their prompt."""
        return self.learner.packing == "shared"

    @property
    def counts(self) -> bool:
        """Whether this rank tells the figures of its cells, and not another one that has the same."""
        return self.rank % self.learner.sequence_parallel == 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"a learner's rank must lie in [0, {self.world_size}) (got {self.rank})")
        if self.world_size > 1 and not self.init_method:
            raise ValueError(f"{self.world_size} ranks need an init_method such as tcp://127.0.0.1:29500 (got none)")
        if self.learner.backend == "torch" and self.world_size > 1:
            raise ValueError(f"learner.backend=torch trains on one rank (got {self.world_size}); use zero or fsdp")
        if self.learner.backend == "zero" and self.learner.zero_stage == 0 and self.dtype != "float32":
            raise ValueError(
                f"learner.zero_stage=0 keeps no fp32 master weights and needs model.dtype=float32 (got {self.dtype}); "
                f"use zero_stage 1 to 3"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec(RankSpec):
    """A rank of the policy's learner; `total_updates` ends the schedule.

    `adapters_alone`: engines are sent its adapters, if it has any, and not the whole model. `other_model`: a checkpoint
    may be of a run that began with another one than `model_path` holds.
    """

    loss: LossConfig
    total_updates: int
    adapters_alone: bool = False
    other_model: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec(RankSpec):
    """A rank of the reward model that the credit method `method` reads.

    `reference_path` is the policy that the run began with; `kl_coef`, `trace_decay` and `turn_discount` are read by
    `etpo` alone.
    """

    method: str
    reference_path: str
    reward_model: RewardModelConfig
    kl_coef: float = 0.0
    trace_decay: float = 0.0
    turn_discount: float = 1.0
