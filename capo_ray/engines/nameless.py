"""Shared memory without a name: once every process of an engine has mapped it, it goes with the last of them.

A killed engine tidies nothing up, and whoever kills it for its node's sake (Ray: the whole group of processes) kills
Python's resource tracker as well: each loss, and each end of a run, would leave hundreds of megabytes in /dev/shm.
"""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

OF_THE_CPU = "/dev/shm/vllm_dist_"
"""How vLLM's CPU build names what the processes of a group add up in."""


def take_names_away(engine: LLMEngine) -> None:
    """Unlink the shared memory of this engine and its workers; call once all have started."""
    engine.collective_rpc(unlink_own)
    unlink_own()


def unlink_own(worker: object = None) -> None:
    """Unlink what this process has made for others to map, and what it has mapped under a name of the CPU build's."""
    from vllm.distributed.device_communicators.shm_broadcast import ShmRingBuffer

    frozen = gc.get_freeze_count()
    gc.unfreeze()  # vLLM hides what it has made at its start from the collector, and from this search
    for buffer in [thing for thing in gc.get_objects() if isinstance(thing, ShmRingBuffer)]:
        if buffer.is_creator:
            buffer.is_creator = False  # or it would unlink the name once more when it goes
            buffer.shared_memory.unlink()
    if frozen:
        gc.freeze()
    for line in Path("/proc/self/maps").read_text().splitlines() if os.path.exists("/proc/self/maps") else ():
        path = line.partition(OF_THE_CPU)
        if path[1]:
            with contextlib.suppress(FileNotFoundError):  # mapped in several pieces, and by the other workers
                os.unlink(path[1] + path[2])
