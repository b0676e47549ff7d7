"""What a learner asks of whatever trains its module, and what all of them keep of Adam in a checkpoint.

    forward, backward, backward, ... -> move(lr)      gradients add up until the move; the caller owns the boundary

Invariants: losses are shares of a sum over all ranks and microbatches; masters are fp32 and sums of gradients too,
whatever the weights; a move whose gradient is not finite moves nothing. Every method is collective.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from capo_ray.learners.relayout import Pieces
from capo_ray.learners.shards import copy_to_host
from capo_ray.protocols import RunFailed

PORTION_NUMEL = 200_000_000
"""Elements made whole at a time when weights are visited."""
_BESIDE = re.compile(r"\.(base_layer|lora_A|lora_B)\.")


class Backend(Protocol):
    """One rank of what holds a module, its masters and Adam's moments."""

    device: torch.device
    rank: int

    def forward(self, *args: object) -> tuple[torch.Tensor, ...]:
        """What the module returns."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss`, this rank's share of a sum over all ranks."""

    def move(self, lr: float) -> float:
        """The global gradient norm before clipping. Where it is not finite the gradients are dropped, nothing moves."""

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum of every rank's `values`."""

    def max_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise maximum of every rank's `values`."""

    def barrier(self) -> None:
        """Returns once every rank has come here."""

    def visit_weights(self, visit: Callable[[dict[str, torch.Tensor]], None], *, trained_only: bool = False) -> None:
        """Calls `visit` on rank 0 with all weights by their names in the module, portion by portion.

        With `trained_only`, frozen ones are left out, and not gathered.

        The tensors are the model's own, where it lies: whole, not copied, and gone once `visit` returns.
        """

    def read_weights(self, read: Callable[[str, torch.Tensor], None]) -> None:
        """Calls `read` with each name and whole weight, on every rank; a weight is whole only during its call."""

    def shard(self) -> dict[str, torch.Tensor]:
        """Copies of this rank's masters and of Adam's state of each, on the CPU: `master.i` and `state.i.key`."""

    def pieces(self) -> Pieces:
        """Which numbers of which weights each master of `shard` holds."""

    def load_shard(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restores what `shard` gave, on a backend of the same kind, stage and number of ranks."""

    def close(self) -> None:
        """Leaves the group."""


def home_of(name: str) -> str:
    """The layer that a weight belongs to where an adapter stands beside it, else the weight's own name."""
    return _BESIDE.split(name, maxsplit=1)[0]


def portions(module: nn.Module, trained_only: bool = False) -> Iterator[dict[str, nn.Parameter]]:
    """Weights by name in portions small enough to hold whole; tied ones come once, a layer's with its adapter's."""
    portion: dict[str, nn.Parameter] = {}
    numel, home = 0, ""
    for name, param in module.named_parameters():
        if trained_only and not param.requires_grad:
            continue
        if numel >= PORTION_NUMEL and home_of(name) != home:
            yield portion
            portion, numel = {}, 0
        portion[name], home = param, home_of(name)
        numel += getattr(param, "ds_numel", param.numel())
    if portion:
        yield portion


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The weights that are trained; the others are frozen."""
    return [param for param in module.parameters() if param.requires_grad]


def whole_pieces(module: nn.Module) -> Pieces:
    """The pieces of masters that are the trained weights themselves."""
    sizes = {name: param.numel() for name, param in module.named_parameters() if param.requires_grad}
    return [(numel, [(name, 0, 0, numel)]) for name, numel in sizes.items()]


def make_adam(
    params: Iterable[torch.Tensor], device: torch.device, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """torch's AdamW over these, which has not moved yet.

    On CPUs in its fused form: one pass over memory for a dozen, a sixth of the time (0.18 s against 1.07 s a move for
    135M weights on one core). Left to torch on GPUs, where a fused counter of moves would lie on the device.
    """
    fused = True if device.type == "cpu" else None
    return torch.optim.AdamW(params, lr=0.0, betas=betas, weight_decay=weight_decay, fused=fused)


def pack_adam(masters: Sequence[torch.Tensor], adam: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """As `Backend.shard`."""
    tensors: dict[str, torch.Tensor] = {}
    for i, master in enumerate(masters):
        tensors[f"master.{i}"] = master
        states = adam.state.get(master, {})
        tensors |= {f"state.{i}.{key}": torch.as_tensor(value) for key, value in states.items()}
    return copy_to_host(tensors)


@torch.no_grad()
def unpack_adam(tensors: dict[str, torch.Tensor], masters: Sequence[torch.Tensor], adam: torch.optim.AdamW) -> None:
    """Restores what `pack_adam` gave."""
    shapes = [tuple(tensors[f"master.{i}"].shape) for i in range(len(masters)) if f"master.{i}" in tensors]
    flat = [(master.numel(),) for master in masters]  # as it comes from another layout
    if shapes != flat and shapes != [tuple(m.shape) for m in masters]:
        raise RunFailed(
            f"a checkpoint must hold the shards of this model, stage and number of ranks "
            f"(got masters {shapes[:3]}, expected {[tuple(m.shape) for m in masters[:3]]})"
        )
    adam.state.clear()
    for i, master in enumerate(masters):
        master.copy_(tensors[f"master.{i}"].view(master.shape))
        prefix = f"state.{i}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if state:  # Adam keeps its move counter on the CPU
            adam.state[master] = {
                key: value.clone() if key == "step" else value.view(master.shape).to(master.device, copy=True)
                for key, value in state.items()
            }
