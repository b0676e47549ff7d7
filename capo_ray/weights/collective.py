"""A version in buckets to every engine at once, in one process group: gloo on CPUs, NCCL on GPUs, the same code.

    member 0, learner rank 0        portions -> | tensors, the first part of one | its rest, tensors | ...
                                                     | broadcast, a bucket at a time
    members 1.., a process each     bucket -> tensors as they are whole -> checksum, places -> loaded beside, or kept
    (every tensor-parallel worker)

On the wire, for each bucket: two numbers (bytes of its head and of its data), the head (JSON: what lies where), the
data. Two zeros end a version. The sender holds two buckets and no copy of the model; with `delta_frac` both ends keep
the version before, and of tensors that changed little only what changed is sent (`delta`), and hashed whole.

Invariants: members are counted when the group is made, in a store that member 0 listens on, and take their seats as
they come; every wait has the meeting's deadline; an end that fails leaves the group, which ends the waits of the
others; nothing is judged here (`transport`).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from capo_ray.protocols import WeightsHandle
from capo_ray.weights import delta
from capo_ray.weights.canary import Canary
from capo_ray.weights.checksum import checksum
from capo_ray.weights.manifest import Manifest
from capo_ray.weights.meeting import Meeting, WireLost
from capo_ray.weights.members import Group, Seat, wire_device
from capo_ray.weights.writer import ALIGNMENT, DTYPES, Places, Witness, as_flat

WHOLE = -1
"""In place of how many values of a tensor changed."""
Piece = tuple[str, str, list[int], int, int, int, int]
"""Name, dtype and shape of a tensor, how many values of it are sent in how many bytes, and which of these bytes are in
the bucket: offset and number."""


class CollectiveSender:
    """`transport.Sender` to the members of a meeting; member 0 of its group.

    What fails is kept in `failure` and ends the sending, not the visit: other ranks stand in the gather.
    """

    def __init__(self, listen: Callable[[str, int, datetime.timedelta], dist.Store]) -> None:
        self._listen = listen
        self._group: Group | None = None
        self._last: dict[str, torch.Tensor] = {}
        self.failure = ""
        self._leave()

    def meet(self, meeting: Meeting) -> None:
        """Be where the members come; called before `begin`, with a meeting of its version."""
        self._meeting, self.failure = meeting, ""
        self._bucket_bytes = -(-meeting.bucket_bytes // ALIGNMENT) * ALIGNMENT
        if self._group is not None and self._group.address == meeting.address:
            return
        self._leave()
        try:
            store = self._listen(meeting.address, meeting.num_members, meeting.timeout)
            self._group = Group(meeting, store, 0, wire_device(meeting))
        except (RuntimeError, OSError, ValueError) as error:
            self._fail(error)

    def begin(self, version: int, num_bytes: int = 0) -> None:
        """As `Sender.begin`."""
        self._version, self._places = version, Places()
        self._pieces: list[Piece] = []
        self._used = 0
        self._sending: Any = None
        self._buckets: list[torch.Tensor] = []
        self.sent_bytes = self.num_changed = self.num_values = 0

    def add(self, portion: Mapping[str, torch.Tensor]) -> None:
        """As `Sender.add`."""
        for name, tensor in portion.items():
            entry = self._places.add(name, tensor)
            if self._group is None:
                continue
            try:
                self._write(entry.name, entry.dtype, list(entry.shape), as_flat(tensor))
            except RuntimeError as error:
                self._fail(error)
        if any(tensor.is_cuda for tensor in portion.values()):
            torch.cuda.synchronize()

    def gathered(self) -> WeightsHandle:
        """As `Sender.gathered`: sends what is left, and the end."""
        try:
            if self._group is not None:
                self._flush()
                self._group.broadcast(torch.zeros(2, dtype=torch.int64, device=self._group.device))
                self._await()
        except RuntimeError as error:
            self._fail(error)
        self._buckets = []
        self._last_version = self._version if self._group is not None else -1
        return self._places.handle(self._version, self._meeting, None)

    def seal(self, witness: Witness, canary: Canary | None) -> WeightsHandle:
        """As `Sender.seal`."""
        return self._places.handle(self._version, self._meeting, canary, witness)

    def figures(self) -> dict[str, float]:
        """Of the last version, names as in metrics."""
        sent = {"weights/sent_mib": self.sent_bytes / (1 << 20)}
        changed = {"weights/changed_frac": self.num_changed / max(self.num_values, 1)}
        return sent | (changed if self._meeting.delta_frac else {})

    def _write(self, name: str, dtype: str, shape: list[int], flat: torch.Tensor) -> None:
        """Put a tensor's bytes into buckets, or what changed of them, each sent as it is full."""
        data, count = flat, WHOLE
        itemsize, frac = DTYPES[dtype].itemsize, self._meeting.delta_frac
        self.num_values += len(flat) // itemsize
        if frac:
            fresh = flat.cpu()
            old = self._last.get(name)
            if old is not None and len(old) == len(fresh):
                changes, num = delta.encode(fresh, old, itemsize, frac)
                self.num_changed += num
                if changes is not None:
                    data, count = changes, num
                old.copy_(fresh)
            else:
                self._last[name] = fresh.clone()
                self.num_changed += len(flat) // itemsize
        self.sent_bytes += len(data)
        at = 0
        while True:
            if self._used == self._bucket_bytes:
                self._flush()
            size = min(len(data) - at, self._bucket_bytes - self._used)
            self._bucket()[self._used : self._used + size].copy_(data[at : at + size])
            self._pieces.append((name, dtype, shape, count, len(data), self._used, size))
            self._used += -(-size // ALIGNMENT) * ALIGNMENT
            at += size
            if at == len(data):
                return

    def _bucket(self) -> torch.Tensor:
        """The bucket that is being filled: two take turns, one of them on its way."""
        if not self._buckets:
            assert self._group is not None
            device = self._group.device
            self._buckets = [torch.empty(self._bucket_bytes, dtype=torch.uint8, device=device) for _ in range(2)]
        return self._buckets[0]

    def _flush(self) -> None:
        """Begin to send the bucket, once the one before it has been taken."""
        if not self._pieces:
            return
        group = self._group
        assert group is not None
        self._await()
        head = torch.frombuffer(bytearray(json.dumps([self._last_version, self._pieces]).encode()), dtype=torch.uint8)
        group.broadcast(torch.tensor([len(head), self._used], dtype=torch.int64).to(group.device))
        group.broadcast(head.to(group.device))
        self._sending = group.begin(self._bucket()[: self._used])
        self._buckets.reverse()
        self._pieces, self._used = [], 0

    def _await(self) -> None:
        if self._sending is not None and self._group is not None:
            self._group.wait(self._sending)
        self._sending = None

    def _fail(self, error: Exception) -> None:
        """Leave the group; its other members' waits end with it."""
        self.failure = " ".join(str(error).split())[:300] or type(error).__name__
        self._leave()

    def _leave(self) -> None:
        """Out of the group, and no version that its members hold."""
        self._group = self._sending = None
        self._last, self._last_version = {}, -1


class CollectiveReceiver:
    """`transport.Receiver` of one version, at a seat. With `keep`, tensors that nobody took are in `kept`."""

    def __init__(self, seat: Seat, meeting: Meeting, *, keep: bool = False) -> None:
        self._seat, self._meeting, self._keep = seat, meeting, keep
        self._places = Places()
        self.found: dict[tuple[int, int], int] = {}
        self.kept: dict[str, torch.Tensor] = {}
        self._stream = self._receive()

    @property
    def manifest(self) -> Manifest:
        """As `Receiver.manifest`."""
        return self._places.manifest(self._meeting.version, None)

    def take(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As `Receiver.take`; raises `WireLost` where the rest does not come."""
        return self._stream

    def finish(self) -> None:
        """As `Receiver.finish`; also after a consumer that gave up, so that the group is ready for the next version."""
        for name, tensor in self._stream:
            if self._keep:
                self.kept[name] = tensor

    def _receive(self) -> Iterator[tuple[str, torch.Tensor]]:
        group = self._seat.at(self._meeting)
        parts: dict[str, tuple[torch.Tensor, int]] = {}
        try:
            while (sizes := group.broadcast(torch.zeros(2, dtype=torch.int64, device=group.device)).tolist())[0]:
                head, data = (
                    group.broadcast(torch.empty(size, dtype=torch.uint8, device=group.device)).cpu() for size in sizes
                )
                last, pieces = json.loads(head.numpy().tobytes())
                for name, dtype, shape, count, sent, offset, size in pieces:
                    # Not as many as came: of a tensor that was cut on the way the rest is waited for, and not found.
                    num_bytes = torch.Size(shape).numel() * DTYPES[dtype].itemsize if count == WHOLE else sent
                    flat = _join(parts, name, num_bytes, data[offset : offset + size])
                    if flat is not None:
                        yield name, self._note(name, dtype, shape, self._whole(name, dtype, count, last, flat))
            if parts:
                raise ValueError(f"it ended within tensor {next(iter(parts))}")
        except (RuntimeError, ValueError) as error:
            self._seat.leave(group)
            raise WireLost(f"version {self._meeting.version} did not come whole: {error}") from error
        self._seat.last_version = self._meeting.version

    def _whole(self, name: str, dtype: str, count: int, last: int, data: torch.Tensor) -> torch.Tensor:
        """A tensor's bytes, from what came of it and, if that was what changed, the version before."""
        kept = self._seat.last
        if count == WHOLE:
            if self._meeting.delta_frac:
                kept[name] = data = data.clone()  # not a whole bucket for the sake of one
            return data
        if last != self._seat.last_version or name not in kept:
            raise ValueError(f"changes of version {last}, and this end holds version {self._seat.last_version}")
        delta.write_over(kept[name], data, count, DTYPES[dtype].itemsize)
        return kept[name]

    def _note(self, name: str, dtype: str, shape: list[int], flat: torch.Tensor) -> torch.Tensor:
        """The tensor over its bytes, whose place and checksum are kept."""
        tensor = flat.view(DTYPES[dtype]).reshape(shape)
        entry = self._places.add(name, tensor)
        self.found[entry.offset, entry.num_bytes] = checksum(flat.numpy())
        return tensor


def _join(
    parts: dict[str, tuple[torch.Tensor, int]], name: str, num_bytes: int, part: torch.Tensor
) -> torch.Tensor | None:
    """A tensor's bytes once all of them are there; those that came before are in `parts`."""
    if name not in parts and len(part) == num_bytes:
        return part
    flat, at = parts.pop(name) if name in parts else (torch.empty(num_bytes, dtype=torch.uint8), 0)
    if at + len(part) > num_bytes:
        raise ValueError(f"more bytes than tensor {name} has")
    flat[at : at + len(part)] = part
    if at + len(part) == num_bytes:
        return flat
    parts[name] = flat, at + len(part)
    return None
