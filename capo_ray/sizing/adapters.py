"""LoRA's adapters on a model of a known shape: their parameters, and what a pass keeps for them."""

from __future__ import annotations

from dataclasses import dataclass

from capo_ray.sizing.shapes import Shape

_INPUTS = {("q_proj", "k_proj", "v_proj"): "hidden", ("gate_proj", "up_proj"): "hidden", ("down_proj",): "inner"}
"""Who reads an input that is kept for them alone, and its width; attention keeps its output, which o_proj reads."""


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """Adapters of one rank on the linear layers `targets` of every block; without targets on all of them."""

    rank: int
    targets: tuple[str, ...] = ()

    def num_params(self, shape: Shape) -> int:
        """Numbers of all A [rank, inputs] and B [outputs, rank]."""
        widths = _widths(shape)
        return shape.layers * self.rank * sum(sum(widths.get(name, (0, 0))) for name in self._names(shape))

    def activation_bytes(self, shape: Shape, unit: int, keeps_inputs: bool = False) -> int:
        """What autograd keeps of a block more than where all of it is trained, in bytes per token (below 0: less).

        Each A's output; no gradient by a frozen norm or matrix, so neither what a norm has normed nor the input of a
        linear layer without an adapter, unless another reads it, or `keeps_inputs`: every layer keeps its own.
        """
        names = self._names(shape)
        unread = 2 * shape.hidden + (shape.q + shape.kv if shape.qk_norm else 0)
        for readers, width in _INPUTS.items():
            unread += 0 if keeps_inputs or any(map(self.on, readers)) else getattr(shape, width)
        return unit * (self.rank * len(names) - unread)

    def on(self, name: str) -> bool:
        """Whether the linear layers of this name have adapters."""
        return not self.targets or name in self.targets

    def _names(self, shape: Shape) -> tuple[str, ...]:
        return self.targets or tuple(_widths(shape))


def _widths(shape: Shape) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of a block's linear layers."""
    hidden, inner = shape.hidden, shape.inner
    return {
        "q_proj": (hidden, shape.q),
        "k_proj": (hidden, shape.kv),
        "v_proj": (hidden, shape.kv),
        "o_proj": (shape.q, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
