"""Which layer each tensor of a version goes to, learnt from vLLM's own loading of the first and followed afterwards.

    load (vLLM finds the way: it walks the model, and counts elements on the meta device)  ->  Route
    the next version, same names and shapes: tensor -> its layer's own loader -> the layer's own packing

Finding the way takes vLLM 0.3 s of Python for 272 tensors, at every version the same; what is copied and packed, and by
which functions, does not change. A model that hands its loaders other tensors than were sent has no route.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import BoundArguments, Signature
from typing import Any

import torch

Loads = Sequence[tuple[str, BoundArguments]]
"""Of one layer: each call of a loader, with the parameter's name."""


@dataclass(frozen=True, slots=True)
class Call:
    """A loader's call for one tensor, but for the tensor and the parameter that it is loaded into."""

    layer: int
    param: str
    signature: Signature
    arguments: Mapping[str, Any]
    """By name and in order; None stands for the tensor."""
    tensor: str
    """The name of the argument that is the tensor."""

    def of(self, tensor: torch.Tensor) -> tuple[str, BoundArguments]:
        """The call as vLLM keeps it for later."""
        arguments = dict(self.arguments) | {self.tensor: tensor}
        return self.param, BoundArguments(self.signature, arguments)


@dataclass(frozen=True, slots=True)
class Route:
    """The loader's call of each tensor, by its name."""

    calls: Mapping[str, Call]
    sent: frozenset[tuple[str, tuple[int, ...]]]
    """Name and shape of all that was loaded; only a version of the same can follow (`Contents.loads`)."""


def route_of(sent: Iterable[tuple[str, torch.Tensor]], loads: Sequence[Loads]) -> Route | None:
    """The way that the tensors `sent` have gone, from each layer's `loads`; None where they cannot be told.

    Each must have come to one loader, once and as it was sent.
    """
    names = {id(tensor): name for name, tensor in sent}
    calls: dict[str, Call] = {}
    for layer, of_layer in enumerate(loads):
        for param, bound in of_layer:
            tensors = [key for key, value in bound.arguments.items() if id(value) in names]
            if len(tensors) != 1 or "param" not in bound.arguments:
                return None
            name = names[id(bound.arguments[tensors[0]])]
            if name in calls:
                return None
            kept = {k: None if k in ("param", tensors[0]) else v for k, v in bound.arguments.items()}
            calls[name] = Call(layer, param, bound.signature, kept, tensors[0])
    if calls.keys() != set(names.values()):
        return None
    return Route(calls, frozenset((name, tuple(tensor.shape)) for name, tensor in sent))
