"""A frozen module whose weights no rank holds whole: equal parts on the ranks, made whole portion by portion.

    shard of portion i (1/R of it, on the device or in host memory)
      --before its forward: to the device, all-gather--> whole weights --forward--> freed
                 (the next portion's gather starts then, and runs beside this one's forward)

A portion is one element of a list of layers, or the weights that another module holds itself (an embedding, a norm, the
head). Bytes of a rank, u of a weight: N u / R held, and at most two portions whole, on the device, while it runs.

Invariant: every rank runs the same forward passes in the same order; a gather is collective.
R ranks, N weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(eq=False)
class _Portion:
    """Weights that come and go together; `offsets` are theirs in the flat portion, `shard` this rank's part of it."""

    params: list[nn.Parameter]
    shapes: list[torch.Size]
    offsets: list[int]
    shard: torch.Tensor
    whole: torch.Tensor | None = None
    gather: Any = None
    tied: list[_Portion] = field(default_factory=list)  # portions with weights that its module uses as well


class ShardedModule:
    """This rank's parts of `module`, which is emptied; calling it is the module's forward without gradients."""

    def __init__(
        self, module: nn.Module, *, rank: int, num_ranks: int, device: torch.device, dtype: torch.dtype, on_host: bool
    ) -> None:
        self._module = module.requires_grad_(False)
        self._rank, self._num_ranks, self._device = rank, num_ranks, device
        store = torch.device("cpu") if on_host else device
        self._portions: list[_Portion] = []
        self._places: dict[str, tuple[_Portion, int]] = {}
        owners: dict[nn.Parameter, _Portion] = {}
        names = {param: name for name, param in module.named_parameters()}
        for at, (unit, params) in enumerate(_units(module)):
            own = [param for param in params if param not in owners]
            portion = self._cut(own, dtype, store)
            owners |= dict.fromkeys(own, portion)
            portion.tied = list(dict.fromkeys(owners[p] for p in params if owners[p] is not portion))
            self._portions.append(portion)
            for param, offset in zip(own, portion.offsets, strict=True):
                self._places[names[param]] = (portion, offset)
                self.write(names[param], param.data)
                param.data = torch.empty(0, dtype=dtype, device=device)
            unit.register_forward_pre_hook(lambda *_, at=at: self._enter(at))
            unit.register_forward_hook(lambda *_, at=at: self._leave(at))
        module.to(device)  # buffers

    @torch.no_grad()
    def __call__(self, *args: object) -> Any:
        return self._module(*args)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Keeps this rank's part of a whole weight, cast to the module's dtype; not collective."""
        portion, offset = self._places[name]
        first = self._rank * portion.shard.numel()
        begin, end = max(first, offset), min(first + portion.shard.numel(), offset + tensor.numel())
        if begin < end:
            part = tensor.detach().reshape(-1)[begin - offset : end - offset]
            portion.shard[begin - first : end - first].copy_(part)

    def shards(self) -> dict[str, torch.Tensor]:
        """This rank's parts, by `portion.i`; not copies."""
        return {f"portion.{i}": portion.shard for i, portion in enumerate(self._portions)}

    def _cut(self, params: list[nn.Parameter], dtype: torch.dtype, store: torch.device) -> _Portion:
        """A portion of `params` with an empty shard; the last rank's is padded with zeros."""
        sizes = [param.numel() for param in params]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        pinned = store.type == "cpu" and self._device.type == "cuda"
        shard = torch.zeros(-(-sum(sizes) // self._num_ranks), dtype=dtype, device=store, pin_memory=pinned)
        return _Portion(params, [param.shape for param in params], offsets, shard)

    def _enter(self, at: int) -> None:
        portion = self._portions[at]
        for needed in (portion, *portion.tied):
            self._start(needed)
            self._finish(needed)
        if at + 1 < len(self._portions):
            self._start(self._portions[at + 1])

    def _leave(self, at: int) -> None:
        portion = self._portions[at]
        for used in (portion, *portion.tied):
            used.whole = None
            for param in used.params:
                param.data = torch.empty(0, dtype=used.shard.dtype, device=self._device)

    def _start(self, portion: _Portion) -> None:
        """Begins to make a portion whole, unless that has begun."""
        if portion.whole is not None or not portion.params:
            return
        shard = portion.shard.to(self._device, non_blocking=True)
        if self._num_ranks == 1:
            portion.whole = shard
            return
        portion.whole = torch.empty(shard.numel() * self._num_ranks, dtype=shard.dtype, device=self._device)
        portion.gather = dist.all_gather_into_tensor(portion.whole, shard, async_op=True), shard

    def _finish(self, portion: _Portion) -> None:
        """Lets the weights of a portion whose gather began be read."""
        if portion.gather is not None:
            portion.gather[0].wait()
            portion.gather = None
        for param, shape, offset in zip(portion.params, portion.shapes, portion.offsets, strict=True):
            assert portion.whole is not None
            param.data = portion.whole[offset : offset + shape.numel()].view(shape)


def _units(module: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Modules whose forward brings their weights along, in the module's order, with all weights that they use."""
    own = list(module.parameters(recurse=False))
    if own:
        yield module, own
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for layer in child:
                yield layer, list(layer.parameters())
        else:
            yield from _units(child)
