"""Host memory of a learner rank whose states are there (learner.offload_states), on the device's behalf.

Adam moves in place there, in one pass without temporaries. Pinned memory is given out in powers of two (torch's
CachingHostAllocator), so that a piece of it takes up to twice its bytes: FSDP2 pins each weight's rows and their
gradient, ZeRO-3 its sums of gradients and what it hands to Adam, each in one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from capo_ray.sizing.bytes import Term, split
from capo_ray.sizing.load import LearnerLoad
from capo_ray.sizing.shapes import Shape


def offloaded_terms(load: LearnerLoad) -> list[Term]:
    """What of one rank's memory is on its host."""
    trained, ranks = load.num_trained, load.num_ranks
    moments = split("moments", trained, 8, ranks, load.trained)
    if not load.fsdp:
        masters = split("masters", trained, 4, ranks, load.trained)
        return [masters, moments, _pinned("gradients", [trained, trained], 4, ranks)]
    matrices = list(_matrices(load.shape))
    if load.adapters is not None:  # themselves too small to count their pieces
        small = [split(name, trained, 4, ranks, load.trained) for name in ("masters", "gradients")]
        return [_pinned("weights", matrices, load.unit, ranks), *small, moments]
    return [*(_pinned(name, matrices, 4, ranks) for name in ("masters", "gradients")), moments]


def _pinned(name: str, numels: Iterable[int], unit: int, ranks: int) -> Term:
    """The term of pieces that are pinned one by one."""
    pieces = [unit * -(-numel // ranks) for numel in numels]
    size = sum(1 << (piece - 1).bit_length() for piece in pieces)
    return Term(
        name, size, f"{unit} B x {sum(pieces) // unit / 1e6:,.0f}M pinned, in {len(pieces)} pieces of powers of two"
    )


def _matrices(shape: Shape) -> Iterator[int]:
    """The sizes of a model's matrices; norms and biases are too small to count."""
    yield from [shape.vocab * shape.hidden] * (1 if shape.tied else 2)
    inside = [shape.q, shape.kv, shape.kv, shape.q, *[shape.inner] * 3]
    yield from [shape.hidden * width for width in inside] * shape.layers
