"""How a version travels: what any transport does at its two ends, whatever carries the bytes between them.

    learner rank 0   visit_weights --portions--> Sender.add ... offer() ---token---+
                     visit_weights --portions--> Witness.add                       |
                                        seal = places + checksums + canary         |        (the driver: Publisher)
                                                  |                                v
    engine                                        |            Receiver.take() --tensors--> a second set of layers
                                                  v                                |
                        compared: places and checksums as they came <--------------+
                        swap, canary, serve

A token is what `WeightsHandle.payload` holds: the bytes themselves (`host`), or where they will be sent. The seal goes
its own way, through the driver, and is the same for every transport: coverage, version, checksums and canary do not
depend on how the bytes came. Whoever comes late takes the version from host memory, whatever the others were sent.

Invariants: a sender takes what it is given before `add` returns (the memory is the model's own); a receiver judges
nothing, it says what came: places and checksums, of the bytes as they lie at this end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch

from capo_ray.protocols import WeightsHandle
from capo_ray.weights.canary import Canary
from capo_ray.weights.manifest import Manifest
from capo_ray.weights.payload import Found
from capo_ray.weights.writer import Witness


class Sender(Protocol):
    """The learner's end; one for all versions."""

    def begin(self, version: int, num_bytes: int = 0) -> None:
        """Start on a version of about `num_bytes`; one that was not sealed is given up."""

    def add(self, portion: Mapping[str, torch.Tensor]) -> None:
        """Send some tensors, whole; returns once their memory may be used again."""

    def gathered(self) -> WeightsHandle:
        """What was sent, not sealed: enough to begin on it, and refused by whoever verifies it."""

    def seal(self, witness: Witness, canary: Canary | None) -> WeightsHandle:
        """The handle of the version, whose checksums are those of the weights that `witness` saw."""


class Receiver(Protocol):
    """The engine's end; one for each version."""

    @property
    def manifest(self) -> Manifest:
        """What came, or is to come: the places alone can be told of it. Whole once everything was taken."""

    @property
    def found(self) -> Found:
        """The checksums of what was taken so far."""

    def take(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor with its name, in the order of the places; not to be written to, valid as long as it is held."""

    def finish(self) -> None:
        """Returns once all has come, also what nobody took, and `found` is of all of it."""
