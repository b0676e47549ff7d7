"""One rank in plain torch, without DeepSpeed and without a process group: `learner.backend=torch`.

Weights in bf16 have fp32 masters, which Adam moves, and fp32 sums of gradients; weights in fp32 are their own masters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from capo_ray.learners.backend import make_adam, pack_adam, portions, trained, unpack_adam, whole_pieces
from capo_ray.learners.pretrained import place
from capo_ray.learners.relayout import Pieces


class PlainBackend:
    """A `Backend` that is alone."""

    rank = 0

    def __init__(
        self,
        module: nn.Module,
        *,
        device: str,
        dtype: torch.dtype,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self.device = torch.device(device)
        place(module, self.device, dtype)
        self._module = module
        self._max_grad_norm = max_grad_norm
        self._masters: dict[nn.Parameter, torch.Tensor] = {}
        for param in trained(module):
            own = param.dtype == torch.float32
            self._masters[param] = param if own else param.detach().float().requires_grad_()
            if not own:
                param.register_post_accumulate_grad_hook(self._add)
        self._adam = make_adam(self._masters.values(), self.device, betas, weight_decay)

    def _add(self, param: torch.Tensor) -> None:
        """Moves a gradient to its fp32 sum, so that none in bf16 outlives its own backward pass."""
        master = self._masters[param]  # type: ignore[index]  # hooks are typed for tensors
        assert param.grad is not None
        master.grad = param.grad.float() if master.grad is None else master.grad.add_(param.grad)
        param.grad = None

    def forward(self, *args: object) -> tuple[torch.Tensor, ...]:
        """As `Backend.forward`."""
        outputs: tuple[torch.Tensor, ...] = self._module(*args)
        return outputs

    def backward(self, loss: torch.Tensor) -> None:
        """As `Backend.backward`."""
        loss.backward()

    def move(self, lr: float) -> float:
        """As `Backend.move`."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        norm = float(nn.utils.clip_grad_norm_(self._masters.values(), self._max_grad_norm))
        if math.isfinite(norm):
            self._adam.step()
            self._refresh_weights()
        self._adam.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def _refresh_weights(self) -> None:
        for param, master in self._masters.items():
            if master is not param:
                param.copy_(master)

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """As `Backend.sum_over_ranks`."""
        return values

    def max_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """As `Backend.max_over_ranks`."""
        return values

    def barrier(self) -> None:
        """As `Backend.barrier`."""

    def visit_weights(self, visit: Callable[[dict[str, torch.Tensor]], None], *, trained_only: bool = False) -> None:
        """As `Backend.visit_weights`."""
        for portion in portions(self._module, trained_only):
            visit({name: param.detach() for name, param in portion.items()})

    @torch.no_grad()
    def read_weights(self, read: Callable[[str, torch.Tensor], None]) -> None:
        """As `Backend.read_weights`."""
        for name, param in self._module.named_parameters():
            read(name, param.detach())

    def shard(self) -> dict[str, torch.Tensor]:
        """As `Backend.shard`."""
        return pack_adam(list(self._masters.values()), self._adam)

    def pieces(self) -> Pieces:
        """As `Backend.pieces`."""
        return whole_pieces(self._module)

    def load_shard(self, tensors: dict[str, torch.Tensor]) -> None:
        """As `Backend.load_shard`."""
        unpack_adam(tensors, list(self._masters.values()), self._adam)
        self._refresh_weights()

    def close(self) -> None:
        """As `Backend.close`."""
