"""Which transport carries a run's weights, from its placement alone: no cluster is asked, nothing is started.

host   through host memory and Ray's object store, one copy to each node; every engine, late ones too
gloo   buckets to all engines at once, over TCP; the code of nccl on CPUs
nccl   the same between GPUs
ipc    vLLM's own for a learner and an engine on one GPU, where this system never puts them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capo_ray.config import TrainConfig
from capo_ray.protocols import RunFailed

Name = Literal["host", "gloo", "nccl"]


@dataclass(frozen=True, slots=True)
class Transport:
    """The transport that is taken, and why."""

    name: Name
    why: str


def choose_transport(config: TrainConfig) -> Transport:
    """What `weights.transport` comes to in this placement; raises `RunFailed` where it cannot work."""
    given = config.weights.transport
    learner, engine = config.learner.num_gpus, config.engine.num_gpus
    found = f"learner.num_gpus={learner:g} and engine.num_gpus={engine:g}"
    if given == "auto":
        if _is_whole(learner) and _is_whole(engine):
            # nccl is the code of gloo with another group, but where a broadcast between GPUs hangs, torch's watchdog
            # ends the process before host memory could serve: not for a run that did not ask for it.
            why = "one copy in each node's memory; weights.transport=nccl has not been run on GPUs yet, name it to try"
            return Transport("host", why)
        return Transport("host", "one copy in each node's memory serves all of its engines")
    if given == "nccl" and not (_is_whole(learner) and _is_whole(engine)):
        raise RunFailed(
            f"weights.transport=nccl needs whole GPUs under the learner and under the engines (got {found}): choose "
            f"learner=gpu engine=gpu, or set weights.transport=auto"
        )
    if given == "ipc":
        raise RunFailed(
            f"weights.transport=ipc needs learner and engine on one GPU, and a run gives each its own (got {found}); "
            f"set weights.transport=auto"
        )
    return Transport(given, "as given")


def _is_whole(gpus: float) -> bool:
    return gpus >= 1 and gpus == int(gpus)
