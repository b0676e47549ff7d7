"""What every rank of a learner group does at its start and around a checkpoint, whatever it trains."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from capo_ray.learners import shards
from capo_ray.learners.backend import Backend
from capo_ray.learners.plain import PlainBackend
from capo_ray.learners.policy import Policy
from capo_ray.learners.pretrained import DTYPES
from capo_ray.learners.relayout import read_pieces
from capo_ray.learners.sequence import SequenceGroup
from capo_ray.learners.spec import LearnerSpec, RankSpec
from capo_ray.learners.zero import ZeroBackend
from capo_ray.protocols import RunFailed
from capo_ray.sizing import unshared_heads


def prepare_process(spec: RankSpec) -> str:
    """The device of this rank; threads and random generators are set."""
    grow_segments(os.environ)
    torch.set_num_threads(spec.learner.num_threads)
    seed = spec.seed + spec.rank
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    device = spec.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and spec.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RunFailed(
            f"model.dtype=bfloat16 needs a GPU that computes in it, of the Ampere generation or later (got "
            f"{torch.cuda.get_device_name()}); set model.dtype=float32, or take other nodes"
        )
    return device


def grow_segments(environment: MutableMapping[str, str]) -> None:
    """Let CUDA's memory grow in place, unless the user has settings of their own: microbatches differ in length.

    Blocks of fixed size would be left in pieces that no later microbatch fits, at the memory that the plan counts on.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environment.keys():
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


@contextmanager
def memory_told(spec: RankSpec, doing: str) -> Iterator[None]:
    """Turns running out of memory into a RunFailed that says where, and what would need less."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        words = str(error).strip().splitlines()
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise RunFailed(
            f"learner rank {spec.rank} of {spec.world_size} ran out of memory while {doing} (learner.zero_stage="
            f"{spec.learner.zero_stage}, learner.microbatch_tokens={spec.learner.microbatch_tokens}): set "
            f"learner.gradient_checkpointing=true, lower learner.microbatch_tokens, or raise learner.num_ranks with "
            f"learner.zero_stage=3; it said: {words[0] if words else type(error).__name__}"
        ) from error


def load_options(spec: RankSpec) -> dict[str, bool]:
    """How the model that is trained is loaded: the backend casts each weight where it comes to lie."""
    return {"gradient_checkpointing": spec.learner.gradient_checkpointing, "cast": False, "shared": spec.shared}


def build_backend(module: nn.Module, spec: RankSpec, device: str) -> Backend:
    """What trains `module` on this rank, once all ranks have met."""
    config = spec.learner
    if config.backend == "torch":
        return PlainBackend(
            module,
            device=device,
            dtype=DTYPES[spec.dtype],
            betas=config.betas,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
        )
    kind = partial(ZeroBackend, stage=config.zero_stage) if config.backend == "zero" else _fsdp()
    return kind(
        module,
        dtype=spec.dtype,
        rank=spec.rank,
        world_size=spec.world_size,
        init_method=spec.init_method,
        device=device,
        betas=config.betas,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        deadline_s=config.deadline_s,
        offload=config.offload_states,
    )


def meet_sequence(spec: RankSpec, policy: Policy) -> SequenceGroup | None:
    """The ranks that share this one's rows, None where each has its own; collective, once all ranks have met.

    Raises RunFailed for a model whose heads they cannot share.
    """
    size = spec.learner.sequence_parallel
    if size == 1:
        return None
    config = policy.model.config.get_text_config()
    heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if what := unshared_heads(heads, size):
        raise RunFailed(f"learner.sequence_parallel={size} cannot share {what} of {spec.model_path!r}; set 1")
    return SequenceGroup.meet(spec.rank, spec.world_size, size, spec.learner.deadline_s)


def _fsdp() -> Callable[..., Backend]:
    from capo_ray.learners.fsdp import FsdpBackend  # its imports take seconds that the others need not wait

    return FsdpBackend


def layout_of(spec: RankSpec) -> dict[str, object]:
    """What a checkpoint's shards depend on."""
    config = spec.learner
    layout: dict[str, object] = {"backend": config.backend, "world_size": spec.world_size, "dtype": spec.dtype}
    if config.lora.rank:  # another checkpoint's masters are of other shapes
        layout["lora"] = config.lora.model_dump(mode="json")
    return layout | ({"zero_stage": config.zero_stage} if config.backend == "zero" else {})


DEALT = ("backend", "world_size", "zero_stage")
"""What of a layout may be another: masters are then dealt anew, by the pieces that they say they hold."""


def restore(backend: Backend, spec: RankSpec, path: str) -> dict[str, Any]:
    """The facts of the policy's checkpoint at `path`, whose masters and Adam's state the backend takes over."""
    directory, ours = Path(path), layout_of(spec)
    there = spec.rank if (directory / f"rank{spec.rank}.json").is_file() else 0  # of its files, where they are fewer
    tensors, facts = shards.read_shard(directory, there)
    same = all(facts.get(key) == ours.get(key) for key in DEALT)
    if not same and "pieces" in facts:
        refreshed = list(directory.glob("reference_rank*.json"))
        if refreshed and facts["world_size"] != spec.world_size:
            raise RunFailed(
                f"the checkpoint {path} holds a refreshed reference in parts of {facts['world_size']} ranks (got "
                f"{spec.world_size}); resume with learner.num_ranks={facts['world_size']}"
            )
        require_layout({key: value for key, value in ours.items() if key not in DEALT}, facts, path)
        found = len(list(directory.glob("rank*.json")))
        if found != facts["world_size"]:
            raise RunFailed(
                f"the checkpoint {path} was saved with world_size={facts['world_size']} (got shards of {found} ranks); "
                f"it is not whole: resume from another one"
            )
        backend.load_shard(read_pieces(directory, backend.pieces()))
    else:
        require_layout(ours, facts, path)
        backend.load_shard(tensors)
    return facts


def require_first_model(spec: LearnerSpec, found: str, facts: dict[str, Any], path: str) -> None:
    """Raises RunFailed unless the files of the model hold what they held when the run that saved a checkpoint began.

    KL is measured from them, adapters are added to them, and neither is in a checkpoint. `found`: the fingerprint of
    what they hold now; where that or the checkpoint's is not known (rank 0 alone knows them) nothing is compared.
    """
    began = facts.get("first_model")
    if spec.other_model or not found or not began or began == found:
        return
    raise RunFailed(
        f"expected model.path={spec.model_path} to hold the model with which the run of {path} began (fingerprint "
        f"{began[:12]}, now {found[:12]}): KL is measured from it, and adapters are added to it; put its files back, "
        f"or take others on purpose from a directory of another name with run.changes_allowed=[model.path]"
    )


def moves_of(facts: dict[str, Any], num_epochs: int) -> int:
    """The moves behind a checkpoint, counted as if each update had made `num_epochs`: the place in the schedule."""
    moves: int = facts["moves"]
    return round(moves * num_epochs / facts.get("num_epochs", num_epochs))


def require_layout(ours: dict[str, object], facts: dict[str, Any], path: str) -> None:
    """Raises RunFailed unless a checkpoint's facts hold all of ours."""
    facts = facts | ({"backend": "zero"} if facts.get("backend") == "deepspeed" else {})  # its name before 2026-11
    for key, value in ours.items():
        if facts.get(key) != value:
            raise RunFailed(
                f"the checkpoint {path} was saved with {key}={facts.get(key)} (got {value}); resume with the same, or "
                f"export it and start from the exported model"
            )
