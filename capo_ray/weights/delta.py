"""What changed of a tensor since the version before it, as places and values, and those written over the old one.

    old, new -> values[n] of the tensor's own type, how far each place is from the one before it
             -> old with values at places = new, bit for bit

A value counts as changed where its bits did: -0 is not 0, and a NaN is the same as itself. In bf16 a small step moves
few values: most updates are below half a unit of the last place. Distances are bytes, of which 255 says "and so much
more": where a hundredth has changed a place takes 1.1 bytes, and a value of bf16 with its place 3.1, where all of them
take 2 each. Places so far apart that distances take more than int32 are sent as int32.
"""

from __future__ import annotations

import torch

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
"""To compare by, and to copy by: of a value's bytes."""
MOST_PLACES = 2**31 - 1
_MORE = 255


def encode(new: torch.Tensor, old: torch.Tensor, itemsize: int, most_frac: float) -> tuple[torch.Tensor | None, int]:
    """(values and places as bytes, how many), from two tensors' bytes of one length.

    The first is None where more than `most_frac` of the values changed, or where places do not fit: send it whole.
    """
    bits = _BITS.get(itemsize)
    if bits is None:
        return None, len(new) // itemsize
    fresh = new.view(bits)
    places = (fresh != old.view(bits)).nonzero().reshape(-1)
    if len(places) > most_frac * len(fresh) or len(fresh) > MOST_PLACES:
        return None, len(places)
    return torch.cat([fresh[places].view(torch.uint8), _written(places)]), len(places)


def write_over(old: torch.Tensor, data: torch.Tensor, count: int, itemsize: int) -> None:
    """Write what changed over a tensor's bytes; raises `ValueError` on a place outside, or another number of places."""
    bits, split = _BITS[itemsize], count * itemsize
    places, flat = _read(data[split:], count), old.view(bits)
    if len(places) != count:
        raise ValueError(f"expected {count} places, got {len(places)}")
    if count and (int(places.min()) < 0 or int(places.max()) >= len(flat)):
        raise ValueError(f"expected places within {len(flat)} values, got {int(places.min())} to {int(places.max())}")
    flat[places] = data[:split].view(bits)


def _written(places: torch.Tensor) -> torch.Tensor:
    """Rising places as bytes, in whichever form is shorter."""
    between = torch.diff(places, prepend=places.new_tensor([-1])) - 1
    more = between // _MORE
    stream = torch.full((int(more.sum()) + len(places),), _MORE, dtype=torch.uint8)
    if len(stream) >= len(places) * torch.int32.itemsize:
        return places.to(torch.int32).view(torch.uint8)
    stream[(more + 1).cumsum(0) - 1] = (between % _MORE).to(torch.uint8)
    return stream


def _read(stream: torch.Tensor, count: int) -> torch.Tensor:
    """The places that `_written` wrote."""
    if len(stream) == count * torch.int32.itemsize:
        return stream.clone().view(torch.int32).long()  # behind values of two bytes it may begin anywhere
    places = stream.cumsum(0, dtype=torch.int64)[stream < _MORE]
    return places + torch.arange(len(places))
