"""What every rank of a learner group does at its start and around a checkpoint, whatever it trains."""

from __future__ import annotations

import os
import random
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import torch
from torch import nn

from capo_ray.learners.spec import RankSpec
from capo_ray.learners.zero import ZeroBackend
from capo_ray.protocols import RunFailed


def prepare_process(spec: RankSpec) -> str:
    """The device of this rank; threads and random generators are set."""
    grow_segments(os.environ)
    torch.set_num_threads(spec.learner.num_threads)
    seed = spec.seed + spec.rank
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if spec.device != "auto":
        return spec.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def grow_segments(environment: MutableMapping[str, str]) -> None:
    """Let CUDA's memory grow in place, unless the user has settings of their own: microbatches differ in length.

    Blocks of fixed size would be left in pieces that no later microbatch fits, at the memory that the plan counts on.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environment.keys():
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def build_backend(module: nn.Module, spec: RankSpec, device: str) -> ZeroBackend:
    """The ZeRO rank that trains `module`, once all ranks have met."""
    config = spec.learner
    return ZeroBackend(
        module,
        stage=config.zero_stage,
        dtype=spec.dtype,
        rank=spec.rank,
        world_size=spec.world_size,
        init_method=spec.init_method,
        device=device,
        betas=config.betas,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        deadline_s=config.deadline_s,
    )


def layout_of(spec: RankSpec) -> dict[str, object]:
    """What a checkpoint's shards depend on."""
    return {"world_size": spec.world_size, "zero_stage": spec.learner.zero_stage, "dtype": spec.dtype}


def require_layout(ours: dict[str, object], facts: dict[str, Any], path: str) -> None:
    """Raises RunFailed unless a checkpoint's facts hold all of ours."""
    for key, value in ours.items():
        if facts.get(key) != value:
            raise RunFailed(
                f"the checkpoint {path} was saved with {key}={facts.get(key)} (got {value}); resume with the same, or "
                f"export it and start from the exported model"
            )
