"""FSDP2 (`fully_shard`) behind the methods that a learner needs; the one file that knows it.

    a block's weights: rows dealt to the ranks, fp32 masters --before its pass: cast, all-gather--> whole --> freed
    its gradients --reduce-scatter in fp32 after its backward pass--> this rank's rows --> Adam

A unit is an element of a list of layers; embedding, last norm and head are one more, since the outer two may be tied.
FSDP averages gradients over ranks; losses here are divided by counts of the whole batch, so `backward` multiplies back.

With `offload` rows, sums of gradients and Adam's moments lie in host memory: a unit's rows come to the device to be
cast and gathered, its gradients leave it once they are dealt, and Adam moves what it has on the host.

Invariants: between passes no weight is whole on any rank, and no unit is until the one before it was dealt; whatever
ranks exchange lies on the device, for NCCL takes nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from capo_ray.learners import meeting
from capo_ray.learners.backend import make_adam, pack_adam, portions, trained, unpack_adam
from capo_ray.learners.pretrained import DTYPES
from capo_ray.learners.relayout import Pieces, cut

TINY = 1e-6  # in the divisor of clipping, as torch's own has it


class FsdpBackend(meeting.Collectives):
    """One rank of a group. `module` is dealt to the ranks and trained; every method is collective."""

    def __init__(
        self,
        module: nn.Module,
        *,
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
        meeting.join(device, rank, world_size, init_method, deadline_s)
        self.device, self.rank = torch.device(device), rank
        self._module, self._world_size = module, world_size
        self._dtype, self._max_grad_norm = DTYPES[dtype], max_grad_norm
        self._deal(offload)
        # Plain tensors over the same memory: Adam needs to know nothing of how rows are dealt.
        self._masters = {param: local(param).requires_grad_() for param in trained(module)}
        self._home = torch.device("cpu") if offload else self.device  # of masters, gradients and moments
        self._adam = make_adam(self._masters.values(), self._home, betas, weight_decay)

    def _deal(self, offload: bool) -> None:
        """Leaves this rank with its rows of each weight: what is trained in fp32, what is frozen in its dtype."""
        # Memory is pinned for a GPU to read and write; torch refuses to where there is none.
        parted = CPUOffloadPolicy(pin_memory=self.device.type != "cpu") if offload else OffloadPolicy()
        mesh = init_device_mesh(self.device.type, (self._world_size,))
        own = None if self._dtype == torch.float32 else self._dtype
        policy = MixedPrecisionPolicy(param_dtype=own, reduce_dtype=torch.float32, cast_forward_inputs=False)
        # What is cast is cast in one place: freed between parts that stay, copies left a heap in pieces.
        room = torch.empty(0, dtype=torch.float32, device=self.device)
        for unit in _units(self._module):
            params = [param for param in unit.parameters() if not isinstance(param, DTensor)]  # the others were dealt
            numel = sum(param.numel() for param in params if param.requires_grad)
            room = room if len(room) >= numel else torch.empty(numel, device=self.device)
            start = 0
            for param in params:
                if param.requires_grad:
                    part = room[start : start + param.numel()].view(param.shape)
                    param.data, start = part.copy_(param.data), start + param.numel()
                else:
                    param.data = param.data.to(self.device).to(self._dtype)
            unit.to(self.device)  # buffers
            # Resharded also where it is the last one: a pass without gradients would leave it whole, and then stale.
            fully_shard(unit, mesh=mesh, mp_policy=policy, offload_policy=parted, reshard_after_forward=True)

    def forward(self, *args: object) -> tuple[torch.Tensor, ...]:
        """As `Backend.forward`."""
        outputs: tuple[torch.Tensor, ...] = self._module(*args)
        return outputs

    def backward(self, loss: torch.Tensor) -> None:
        """As `Backend.backward`."""
        (loss * self._world_size).backward()

    @torch.no_grad()
    def move(self, lr: float) -> float:
        """As `Backend.move`."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        squares = torch.zeros((), dtype=torch.float64, device=self._home)
        for param, master in self._masters.items():
            if param.grad is not None:
                master.grad = local(param.grad)
                squares += master.grad.square().sum()
        norm = math.sqrt(float(self.sum_over_ranks(squares.to(self.device))))
        if math.isfinite(norm):
            for master in self._masters.values():
                if master.grad is not None:
                    master.grad.mul_(min(1.0, self._max_grad_norm / (norm + TINY)))
            self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        for param in self._masters:
            param.grad = None
        return norm

    @torch.no_grad()
    def visit_weights(self, visit: Callable[[dict[str, torch.Tensor]], None], *, trained_only: bool = False) -> None:
        """As `Backend.visit_weights`; what is visited is gathered and cast as a pass does it."""
        for portion in portions(self._module, trained_only):
            whole = {name: self._whole(param) for name, param in portion.items()}
            if self.rank == 0:
                visit(whole)

    @torch.no_grad()
    def read_weights(self, read: Callable[[str, torch.Tensor], None]) -> None:
        """As `Backend.read_weights`."""
        for name, param in self._module.named_parameters():
            read(name, self._whole(param))

    def _whole(self, param: nn.Parameter) -> torch.Tensor:
        assert isinstance(param, DTensor), "no weight is whole between passes"
        cast: DTensor = param.detach().to(self.device, self._dtype)  # type: ignore[assignment]  # of a DTensor it is one
        return cast.full_tensor()

    def shard(self) -> dict[str, torch.Tensor]:
        """As `Backend.shard`."""
        return pack_adam(list(self._masters.values()), self._adam)

    def pieces(self) -> Pieces:
        """As `Backend.pieces`: rows, dealt as evenly as they can be from the first rank on."""
        found: Pieces = []
        for name, param in self._module.named_parameters():
            if param in self._masters:
                rows = -(-param.shape[0] // self._world_size)
                width = param.numel() // param.shape[0]
                start = rows * self.rank * width
                own = self._masters[param].numel()
                found.append((own, cut([(name, 0, param.numel())], start, own)))
        return found

    def load_shard(self, tensors: dict[str, torch.Tensor]) -> None:
        """As `Backend.load_shard`."""
        unpack_adam(tensors, list(self._masters.values()), self._adam)

    def close(self) -> None:
        """As `Backend.close`."""
        meeting.leave()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows, in the same memory."""
    assert isinstance(tensor, DTensor)
    rows: torch.Tensor = tensor.to_local().detach()
    return rows


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of the outermost lists of layers, then the module with all that is left."""

    def lists(parent: nn.Module) -> Iterator[nn.Module]:
        for child in parent.children():
            yield from child if isinstance(child, nn.ModuleList) else lists(child)

    yield from lists(module)
    yield module
