"""DeepSpeed ZeRO, stages 0 to 3, behind the few methods that a learner needs; the one file that knows DeepSpeed.

    forward, backward, backward, ... -> move(lr)      gradients add up until the move; the caller owns the boundary
    visit_weights(visit)                              whole tensors, on rank 0, a portion at a time
    shard() / load_shard()                            this rank's masters and moments, as plain tensors

DeepSpeed averages gradients over ranks; losses here are already divided by counts of the whole batch, so `backward`
multiplies back. Its own checkpoints are pickles, hence shards of our own.
"""

from __future__ import annotations

import datetime
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capo_ray.imports import imported_for_good
from capo_ray.learners import meeting
from capo_ray.learners.backend import make_adam, pack_adam, portions, trained, unpack_adam, whole_pieces
from capo_ray.learners.pretrained import DTYPES, place
from capo_ray.learners.relayout import Piece, Pieces, cut, end_to_end

BUCKET_NUMEL = 200_000_000


class ZeroBackend(meeting.Collectives):
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
        offload: bool = False,
    ) -> None:
        deepspeed = _import_deepspeed(device, rank, world_size)
        meeting.join(device, rank, world_size, init_method, deadline_s)
        _tell(deepspeed, device, deadline_s)
        self.device = torch.device(device)
        self.stage = stage
        self._deepspeed = deepspeed
        self._world_size = world_size
        self.rank = rank
        numel = sum(p.numel() for p in module.parameters())
        moved = sum(p.numel() for p in trained(module))
        config = _config(stage, dtype, max_grad_norm, numel, moved, device, offload)
        if stage == 3:
            _partition(deepspeed, module, config, self.device, DTYPES[dtype])
        else:
            place(module, self.device, DTYPES[dtype])
        # torch's AdamW: DeepSpeed's own CPU Adam needs a compiler and 80 s at its first use.
        home = torch.device("cpu") if offload else self.device
        self._adam = make_adam(trained(module), home, betas, weight_decay)
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._adam, config=config)
        self._optimizer: Any = self._engine.optimizer

    def forward(self, *args: object) -> tuple[torch.Tensor, ...]:
        """What the module returns."""
        outputs: tuple[torch.Tensor, ...] = self._engine(*args)
        return _Together.apply(*outputs) if self.stage == 3 else outputs

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss`, this rank's share of a sum over all ranks."""
        self._engine.backward(loss * self._world_size)

    def move(self, lr: float) -> float:
        """The global gradient norm before clipping. Where it is not finite the gradients are dropped, nothing moves."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            return self._plain_move()
        self._engine.step()
        # DeepSpeed itself skips a move whose gradient is not finite.
        return float(self._optimizer._global_grad_norm) if self._engine.was_step_applied() else float("nan")

    def _plain_move(self) -> float:
        """As `move`, without ZeRO: DeepSpeed does not look at the gradient here, so it is looked at first."""
        self._engine.buffered_allreduce_fallback()
        squares = [p.grad.float().square().sum() for p in self._engine.module.parameters() if p.grad is not None]
        norm = float(torch.stack(squares).sum().sqrt())
        if not math.isfinite(norm):
            for param in self._engine.module.parameters():
                param.grad = None
            return norm
        self._engine.enable_backward_allreduce = False  # done above: a second time would divide again
        self._engine.step()
        self._engine.enable_backward_allreduce = True
        return norm

    @torch.no_grad()
    def visit_weights(self, visit: Callable[[dict[str, torch.Tensor]], None], *, trained_only: bool = False) -> None:
        """As `Backend.visit_weights`."""
        for portion in portions(self._engine.module, trained_only):
            with self._deepspeed.zero.GatheredParameters(list(portion.values()), enabled=self.stage == 3):
                if self.rank == 0:
                    visit({name: param.detach() for name, param in portion.items()})

    @torch.no_grad()
    def read_weights(self, read: Callable[[str, torch.Tensor], None]) -> None:
        """Calls `read` with each name and whole weight, on every rank; a weight is whole only during its call."""
        for portion in portions(self._engine.module):
            with self._deepspeed.zero.GatheredParameters(list(portion.values()), enabled=self.stage == 3):
                for name, param in portion.items():
                    read(name, param)

    def shard(self) -> dict[str, torch.Tensor]:
        """Copies of this rank's masters and of Adam's state of each, on the CPU: `master.i` and `state.i.key`."""
        return pack_adam(self._masters(), self._adam)

    def pieces(self) -> Pieces:
        """As `Backend.pieces`."""
        if self.stage == 0:
            return whole_pieces(self._engine.module)
        names = {param: name for name, param in self._engine.module.named_parameters()}
        found: Pieces = []
        for group, master in enumerate(self._masters()):
            size = master.numel()
            if self.stage == 3:  # the ranks' parts of each weight, padded to equal size, end to end
                parts = [(names[param], param) for param in self._optimizer.fp16_groups[group]]
                sizes = end_to_end([(name, param.partition_numel()) for name, param in parts])
                its: list[Piece] = []
                for (name, param), (_, offset, part) in zip(parts, sizes, strict=True):
                    own = cut([(name, 0, param.ds_numel)], part * self.rank, part)
                    its += [(name, offset, begin, end) for _, _, begin, end in own]
                found.append((size, its))
            elif hasattr(self._optimizer, "bf16_groups"):
                weights = end_to_end([(names[param], param.numel()) for param in self._optimizer.bf16_groups[group]])
                found.append((size, cut(weights, size * self.rank, size)))
            else:
                params = self._optimizer.round_robin_bit16_groups[group]
                offsets = self._optimizer.round_robin_bit16_offsets[group]
                weights = [(names[param], at, param.numel()) for param, at in zip(params, offsets, strict=True)]
                found.append((size, cut(weights, size * self.rank, size)))
        return found

    def load_shard(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `shard` gave, on a backend of the same stage and number of ranks."""
        unpack_adam(tensors, self._masters(), self._adam)
        self._refresh_weights()

    def _masters(self) -> list[torch.Tensor]:
        """The tensors that Adam moves, in a fixed order."""
        if self.stage == 0:
            return [*trained(self._engine.module)]
        if self.stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        if hasattr(self._optimizer, "fp32_groups_flat_partition"):  # stage 1 in bf16 has an optimizer class of its own
            return list(self._optimizer.fp32_groups_flat_partition)
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


class _Together(torch.autograd.Function):
    """The outputs of a module, unchanged; whichever of them a loss reads, all get a gradient.

    ZeRO-3 begins a module's backward pass once for each of its outputs with a gradient, and holds that against the pass
    before: ranks whose losses read different outputs (only some cells have entropy weights) would gather different
    weights, and wait for each other until the deadline.
    """

    @staticmethod
    def forward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return grads


def _import_deepspeed(device: str, rank: int, world_size: int) -> Any:
    """The module, imported with the environment it reads at import; no compiled extension is built or loaded."""
    os.environ["DS_ACCELERATOR"] = device
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "capo-ray" / "torch_extensions"))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.setdefault("LOCAL_RANK", "0")  # a Ray actor sees its own GPU as number 0
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    with imported_for_good():
        import deepspeed
        import deepspeed.ops

    # Its collectives call names that torch has renamed: one warning for each call would bury every log.
    warnings.filterwarnings("ignore", message="`torch.distributed.", category=FutureWarning)
    # Its shared-memory collective serves inference alone; left listed, it is compiled at the first start, with g++.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    deepspeed.utils.logger.setLevel("WARNING")
    # Stage 1 in bf16 prints its memory at every start, and resets the peak that we measure.
    deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *_, **__: None
    return deepspeed


def _tell(deepspeed: Any, device: str, deadline_s: float) -> None:
    """Lets DeepSpeed use the process group that is there."""
    timeout = datetime.timedelta(seconds=deadline_s)
    deepspeed.init_distributed(dist_backend=meeting.transport(device), timeout=timeout, verbose=False)


def _leave(deepspeed: Any) -> None:
    """Ends the process group, also in DeepSpeed's own records, so that the process can hold another learner."""
    import deepspeed.comm.comm as comm

    deepspeed.comm.destroy_process_group()
    comm.cdb = None


def _partition(
    deepspeed: Any, module: nn.Module, config: dict[str, object], device: torch.device, dtype: torch.dtype
) -> None:
    """Deals each weight to the ranks before the next one is touched: none holds more than its part and one weight."""
    # A copy, since DeepSpeed writes into it, and a mapped file that is written to becomes memory of this rank's own.
    # All in one place: freed between parts that stay, copies left a heap in pieces (25 to 65 MB beside a part of 100).
    room = torch.empty(max(param.numel() for param in module.parameters()), dtype=dtype, device=device)
    for param in module.parameters():
        param.data = room[: param.numel()].view(param.shape).copy_(param.data)
        deepspeed.zero.Init(module=nn.ParameterList([param]), config_dict_or_path=config, dtype=dtype)
    module.to(device)  # buffers


def _config(
    stage: int, dtype: str, max_grad_norm: float, numel: int, moved: int, device: str, offload: bool = False
) -> dict[str, object]:
    """DeepSpeed's configuration, for `numel` weights of which `moved` are trained."""
    bucket = min(BUCKET_NUMEL, moved + moved % 2)  # buckets are allocated whole; NCCL aligns them to pairs
    zero: dict[str, object] = {
        "stage": stage,
        "overlap_comm": stage >= 2 and device == "cuda",  # on streams of its own, which a CPU has not
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": min(BUCKET_NUMEL, numel),
            "stage3_max_live_parameters": 4 * BUCKET_NUMEL,
            "stage3_param_persistence_threshold": 10_000,  # norms stay whole, matrices do not
        }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    # Sums over microbatches and ranks in fp32; in bf16 the norm is off by 1.7% at 256 microbatches.
    sums: dict[str, object] = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    return (sums if dtype == "bfloat16" else {}) | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # the number of microbatches differs from batch to batch
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # which must be compiled; torch's fused one moves as fast
        # Stage 1 adds each gradient to its sum at once: all of them in bf16 would be half as much memory again.
        "bf16": {"enabled": dtype == "bfloat16", "immediate_grad_update": stage == 1},
        "steps_per_print": None,
    }
