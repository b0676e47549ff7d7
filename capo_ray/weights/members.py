"""The process group of a meeting: rank 0 of the learner is member 0, engine processes take the other seats.

member 0 listens -> engines come, the store's `seats` counts them -> group, kept from version to version
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from capo_ray.weights.meeting import Meeting, WireLost


class Group:
    """One member of a meeting's process group."""

    def __init__(self, meeting: Meeting, store: dist.Store, rank: int, device: torch.device) -> None:
        self.address, self.device = meeting.address, device
        self._timeout = meeting.timeout
        place, size = dist.PrefixStore("weights", store), meeting.num_members
        self._group: Any
        if meeting.backend == "gloo":
            self._group = dist.ProcessGroupGloo(place, rank, size, self._timeout)
        else:
            nccl: Any = dist.ProcessGroupNCCL
            options = nccl.Options()
            options._timeout = self._timeout
            self._group = nccl(place, rank, size, options)
        self._options = dist.BroadcastOptions()
        self._options.rootRank, self._options.rootTensor = 0, 0

    def begin(self, tensor: torch.Tensor) -> Any:
        """Begin to send member 0's `tensor` into everybody's; what is returned ends in `wait`."""
        return self._group.broadcast([tensor], self._options)

    def wait(self, work: Any) -> None:
        """Returns once a broadcast is over for this member; `RuntimeError` where it failed or is late."""
        if not work.wait(self._timeout):
            raise RuntimeError("a broadcast failed")

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Both."""
        self.wait(self.begin(tensor))
        return tensor


def wire_device(meeting: Meeting, gpu: int | None = None) -> torch.device:
    """Where the buckets of this process lie; `gpu`: which one, where it is not this thread's own."""
    if meeting.backend == "gloo":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device() if gpu is None else gpu)


class Seat:
    """An engine process's place in the group of the newest meeting; kept from version to version."""

    def __init__(self, gpu: int | None = None) -> None:
        self._gpu = gpu
        self._group: Group | None = None
        self.last: dict[str, torch.Tensor] = {}
        """The bytes of each tensor of the last version that came here, where changes of them may come next."""
        self.last_version = -1

    def at(self, meeting: Meeting) -> Group:
        """The group of a meeting, joined now unless it was before; raises `WireLost` where it does not come about."""
        if self._group is not None and self._group.address == meeting.address:
            return self._group
        self.leave()
        place = urlsplit(meeting.address)
        try:
            store = dist.TCPStore(
                str(place.hostname), int(place.port or 0), meeting.num_members, is_master=False, timeout=meeting.timeout
            )
            rank = store.add("seats", 1)
            if rank >= meeting.num_members:
                raise RuntimeError(f"{rank} members came, {meeting.num_members - 1} were expected beside the sender")
            self._group = Group(meeting, store, rank, wire_device(meeting, self._gpu))
        except (RuntimeError, OSError, ValueError) as error:
            raise WireLost(f"could not meet at {meeting.address}: {error}") from error
        return self._group

    def leave(self, group: Group | None = None) -> None:
        """Give the place up: the next version is met for anew, and comes whole. Nothing if `group` was left already."""
        if group is None or group is self._group:
            self._group, self.last, self.last_version = None, {}, -1
