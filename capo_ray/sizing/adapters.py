"""The parameters of LoRA's adapters on a model of a known shape."""

from __future__ import annotations

from dataclasses import dataclass

from capo_ray.sizing.shapes import Shape


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """Adapters of one rank on the linear layers `targets` of every block; without targets on all of them."""

    rank: int
    targets: tuple[str, ...] = ()

    def num_params(self, shape: Shape) -> int:
        """Numbers of all A [rank, inputs] and B [outputs, rank]."""
        widths = _widths(shape)
        return shape.layers * self.rank * sum(sum(widths.get(name, (0, 0))) for name in self._names(shape))

    def activation_bytes(self, shape: Shape, unit: int) -> int:
        """What autograd keeps of them beside a block's own, in bytes per token: each A's output."""
        return unit * self.rank * len(self._names(shape))

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
