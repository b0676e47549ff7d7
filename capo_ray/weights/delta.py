"""What changed of a tensor since the version before it, as places and values, and those written over the old one.

    old, new -> places int32[n], values[n] of the tensor's own type -> old with values at places = new, bit for bit

A value counts as changed where its bits did: -0 is not 0, and a NaN is the same as itself. In bf16 a small step moves
few values: most updates are below half a unit of the last place. A place and a value of bf16 take 6 bytes, not 2.
"""

from __future__ import annotations

import torch

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
"""To compare by, and to copy by: of a value's bytes."""
MOST_PLACES = 2**31 - 1


def encode(new: torch.Tensor, old: torch.Tensor, itemsize: int, most_frac: float) -> tuple[torch.Tensor | None, int]:
    """(places and values as bytes, how many), from two tensors' bytes of one length.

    The first is None where more than `most_frac` of the values changed, or where places do not fit: send it whole.
    """
    bits = _BITS.get(itemsize)
    if bits is None:
        return None, len(new) // itemsize
    fresh = new.view(bits)
    places = (fresh != old.view(bits)).nonzero().reshape(-1)
    if len(places) > most_frac * len(fresh) or len(fresh) > MOST_PLACES:
        return None, len(places)
    return torch.cat([places.to(torch.int32).view(torch.uint8), fresh[places].view(torch.uint8)]), len(places)


def num_bytes(count: int, itemsize: int) -> int:
    """Of what `encode` gives for so many values."""
    return count * (torch.int32.itemsize + itemsize)


def write_over(old: torch.Tensor, data: torch.Tensor, count: int, itemsize: int) -> None:
    """Write what changed over a tensor's bytes; raises `ValueError` on a place outside."""
    bits, split = _BITS[itemsize], count * torch.int32.itemsize
    places, flat = data[:split].view(torch.int32).long(), old.view(bits)
    if count and (int(places.min()) < 0 or int(places.max()) >= len(flat)):
        raise ValueError(f"expected places within {len(flat)} values, got {int(places.min())} to {int(places.max())}")
    flat[places] = data[split:].view(bits)
