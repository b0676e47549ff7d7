"""Which transport carries a run's weights, from its placement alone: no cluster is asked, nothing is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capo_ray.config import TrainConfig

Name = Literal["host"]


@dataclass(frozen=True, slots=True)
class Transport:
    """The transport that is taken, and why."""

    name: Name
    why: str


def choose_transport(config: TrainConfig) -> Transport:
    """What `weights.transport` comes to in this placement; raises `RunFailed` where it cannot work."""
    if config.weights.transport == "host":
        return Transport("host", "as given")
    return Transport("host", "one copy in each node's shared memory serves all of its engines")
