"""DeepSpeed ZeRO, stages 0 to 3, behind the few methods that a learner needs; the one file that knows DeepSpeed.

    forward, backward, backward, ... -> move(lr)      gradients add up until the move; the caller owns the boundary
    visit_weights(visit)                              whole tensors, on rank 0, a portion at a time
    shard() / load_shard()                            this rank's masters and moments, as plain tensors

DeepSpeed averages gradients over ranks; losses here are already divided by counts of the whole batch, so `backward`
multiplies back. Its own checkpoints are pickles, hence shards of our own.
"""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from capo_ray.learners.store import build_store
from capo_ray.protocols import RunFailed

GATHER_NUMEL = 200_000_000  # elements made whole at a time when ZeRO-3 weights are gathered
BUCKET_NUMEL = 200_000_000


class ZeroBackend:
    """One rank of a ZeRO group. `module` is moved, partitioned and trained; every method is collective."""

    def __init__(
        self,
        module: nn.Module,
        *,
        stage: int,
        dtype: str,
        rank: int,
        world_size: int,
        init_method: str,
        device: str,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
        deadline_s: float,
    ) -> None:
        deepspeed = _import_deepspeed(device, rank, world_size)
        _join(deepspeed, device, rank, world_size, init_method, deadline_s)
        self.device = torch.device(device)
        self.stage = stage
        self._deepspeed = deepspeed
        self._world_size = world_size
        self.rank = rank
        numel = sum(p.numel() for p in module.parameters())
        # torch's AdamW: DeepSpeed's own CPU Adam needs a compiler and 80 s at its first use.
        self._adam = torch.optim.AdamW(module.parameters(), lr=0.0, betas=betas, weight_decay=weight_decay)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._adam, config=_config(stage, dtype, max_grad_norm, numel, device)
        )
        self._optimizer: Any = self._engine.optimizer

    def forward(self, *args: object) -> tuple[torch.Tensor, ...]:
        """What the module returns."""
        return self._engine(*args)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss`, this rank's share of a sum over all ranks."""
        self._engine.backward(loss * self._world_size)

    def move(self, lr: float) -> float:
        """The global gradient norm before clipping; raises RunFailed, weights untouched, where it is not finite."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            return self._plain_move()
        self._engine.step()
        norm = self._optimizer._global_grad_norm
        # DeepSpeed skips a move whose gradient is not finite and says so here; it must end the run instead.
        if not self._engine.was_step_applied():
            raise RunFailed(_non_finite("gradient"))
        return float(norm)

    def _plain_move(self) -> float:
        """As `move`, without ZeRO: DeepSpeed does not look at the gradient here, so it is looked at first."""
        self._engine.buffered_allreduce_fallback()
        squares = [p.grad.float().square().sum() for p in self._engine.module.parameters() if p.grad is not None]
        norm = float(torch.stack(squares).sum().sqrt())
        if norm != norm or norm == float("inf"):
            raise RunFailed(_non_finite("gradient"))
        self._engine.enable_backward_allreduce = False  # done above: a second time would divide again
        self._engine.step()
        self._engine.enable_backward_allreduce = True
        return norm

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum of every rank's `values`."""
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def max_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise maximum of every rank's `values`."""
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def barrier(self) -> None:
        """Returns once every rank has come here."""
        dist.barrier()

    @torch.no_grad()
    def visit_weights(self, visit: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Calls `visit` on rank 0 with all weights by their names in the module, portion by portion.

        The tensors are the model's own, where it lies: whole, not copied, and gone once `visit` returns.
        """
        for names, params in _portions(self._engine.module):
            with self._deepspeed.zero.GatheredParameters(params, enabled=self.stage == 3):
                if self.rank == 0:
                    visit({name: param.detach() for name, param in zip(names, params, strict=True)})

    @torch.no_grad()
    def copy_weights(self, target: nn.Module) -> None:
        """Writes all weights into `target`, a whole module of the same names, on every rank."""
        places = dict(target.named_parameters())
        for names, params in _portions(self._engine.module):
            with self._deepspeed.zero.GatheredParameters(params, enabled=self.stage == 3):
                for name, param in zip(names, params, strict=True):
                    places[name].copy_(param)

    def shard(self) -> dict[str, torch.Tensor]:
        """This rank's master weights and Adam's state of each, named `master.i` and `state.i.key`."""
        tensors: dict[str, torch.Tensor] = {}
        for i, master in enumerate(self._masters()):
            tensors[f"master.{i}"] = master.detach().cpu().contiguous()
            for key, value in self._adam.state.get(master, {}).items():
                tensors[f"state.{i}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
        return tensors

    @torch.no_grad()
    def load_shard(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `shard` gave, on a backend of the same stage and number of ranks."""
        masters = self._masters()
        shapes = [tuple(tensors[f"master.{i}"].shape) for i in range(len(masters)) if f"master.{i}" in tensors]
        if shapes != [tuple(m.shape) for m in masters]:
            raise RunFailed(
                f"a checkpoint must hold the shards of this model, stage and number of ranks "
                f"(got masters {shapes[:3]}, expected {[tuple(m.shape) for m in masters[:3]]})"
            )
        self._adam.state.clear()
        for i, master in enumerate(masters):
            master.copy_(tensors[f"master.{i}"])
            prefix = f"state.{i}."
            state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if state:  # Adam keeps its move counter on the CPU
                self._adam.state[master] = {
                    key: value.clone() if key == "step" else value.to(master.device, copy=True)
                    for key, value in state.items()
                }
        self._refresh_weights()

    def _masters(self) -> list[torch.Tensor]:
        """The tensors that Adam moves, in a fixed order."""
        if self.stage == 0:
            return list(self._engine.module.parameters())
        if self.stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _refresh_weights(self) -> None:
        """Makes the weights that the forward pass reads from the masters."""
        if self.stage in (1, 2):
            self._optimizer.update_lp_params()
        elif self.stage == 3:
            self._optimizer._partition_all_parameters()  # small tensors that stay whole would keep their old values
            for group in range(len(self._optimizer.fp16_groups)):
                self._optimizer._reassign_or_swap_out_partitioned_parameters(group)

    def close(self) -> None:
        """Leaves the group and frees the engine."""
        self._engine.destroy()
        _leave(self._deepspeed)


def _import_deepspeed(device: str, rank: int, world_size: int) -> Any:
    """The module, imported with the environment it reads at import; no compiled extension is built or loaded."""
    os.environ["DS_ACCELERATOR"] = device
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "capo-ray" / "torch_extensions"))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.setdefault("LOCAL_RANK", "0")  # a Ray actor sees its own GPU as number 0
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed
    import deepspeed.ops

    # Its collectives call names that torch has renamed: one warning for each call would bury every log.
    warnings.filterwarnings("ignore", message="`torch.distributed.", category=FutureWarning)
    # Its shared-memory collective serves inference alone; left listed, it is compiled at the first start, with g++.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    deepspeed.utils.logger.setLevel("WARNING")
    return deepspeed


def _join(deepspeed: Any, device: str, rank: int, world_size: int, init_method: str, deadline_s: float) -> None:
    """Makes this process one rank of the group, within the deadline."""
    if dist.is_initialized():
        raise RunFailed("a process holds one learner at a time (got a second one); close the first")
    timeout = datetime.timedelta(seconds=deadline_s)
    backend = "nccl" if device == "cuda" else "gloo"
    try:
        store = build_store(init_method, rank, world_size, timeout)
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout, store=store)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailed(
            f"learner rank {rank} of {world_size} could not meet the others at {init_method} within "
            f"{deadline_s:.0f} s: {error}"
        ) from error
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)


def _leave(deepspeed: Any) -> None:
    """Ends the process group, so that the process can hold another learner."""
    import deepspeed.comm.comm as comm

    deepspeed.comm.destroy_process_group()
    comm.cdb = None


def _config(stage: int, dtype: str, max_grad_norm: float, numel: int, device: str) -> dict[str, object]:
    """DeepSpeed's configuration."""
    bucket = min(BUCKET_NUMEL, numel + numel % 2)  # buckets are allocated whole; NCCL aligns them to pairs
    zero: dict[str, object] = {
        "stage": stage,
        "overlap_comm": stage >= 2 and device == "cuda",  # on streams of its own, which a CPU has not
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": 4 * BUCKET_NUMEL,
            "stage3_param_persistence_threshold": 10_000,  # norms stay whole, matrices do not
        }
    # Sums over microbatches and ranks in fp32: in bf16 the norm was off by 1.7 % at 256 microbatches. Stage 1 would get
    # another optimizer class for it, whose masters `_masters` does not know.
    sums: dict[str, object] = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    return (sums if dtype == "bfloat16" and stage >= 2 else {}) | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # the number of microbatches differs from batch to batch
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": None,
    }


def _portions(module: nn.Module) -> Iterator[tuple[list[str], list[nn.Parameter]]]:
    """Names and parameters in portions small enough to hold whole; tied weights come once."""
    names: list[str] = []
    params: list[nn.Parameter] = []
    numel = 0
    for name, param in module.named_parameters():
        names.append(name)
        params.append(param)
        numel += getattr(param, "ds_numel", param.numel())
        if numel >= GATHER_NUMEL:
            yield names, params
            names, params, numel = [], [], 0
    if names:
        yield names, params


def _non_finite(what: str) -> str:
    return (
        f"the update's {what} must be finite (got NaN or infinity); the weights were not moved: lower learner.lr, "
        f"check the advantages, or resume from the last checkpoint"
    )
