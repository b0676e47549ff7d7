"""Where the ranks of a learner group meet: torch's process group, one per process."""

from __future__ import annotations

import datetime

import torch
import torch.distributed as dist

from capo_ray.learners.store import build_store
from capo_ray.protocols import RunFailed


def join(device: str, rank: int, world_size: int, init_method: str, deadline_s: float) -> None:
    """Makes this process one rank of the group, within the deadline; a single rank needs no `init_method`."""
    if dist.is_initialized():
        raise RunFailed("a process holds one learner at a time (got a second one); close the first")
    timeout = datetime.timedelta(seconds=deadline_s)
    try:
        store = build_store(init_method, rank, world_size, timeout)
        dist.init_process_group(transport(device), rank=rank, world_size=world_size, timeout=timeout, store=store)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailed(
            f"learner rank {rank} of {world_size} could not meet the others at {init_method} within "
            f"{deadline_s:.0f} s: {error}"
        ) from error


class Collectives:
    """What ranks that have met do together, of a `Backend`."""

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """As `Backend.sum_over_ranks`."""
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def max_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """As `Backend.max_over_ranks`."""
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def barrier(self) -> None:
        """As `Backend.barrier`."""
        dist.barrier()


def leave() -> None:
    """Ends the process group, so that the process can hold another learner."""
    dist.destroy_process_group()


def transport(device: str) -> str:
    """The backend of collectives on `device`."""
    return "nccl" if device == "cuda" else "gloo"
