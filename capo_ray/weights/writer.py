"""The sender's side: tensors into one flat buffer that is kept from version to version.

    portion of the model -> finite? (on its device) -> copied and checksummed, in threads -> payload + manifest entries

Each byte is copied once. Where the source lies in host memory its checksum is taken of the source, not of the copy, so
that a copy that went wrong (or did not happen: the buffer holds the last version) does not pass the receiver's check.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from capo_ray.protocols import RunFailed, WeightsHandle
from capo_ray.weights.canary import Canary
from capo_ray.weights.checksum import BLOCK_BYTES, checksum
from capo_ray.weights.manifest import Manifest, TensorEntry, weights_digest

ALIGNMENT = 64  # of Ray's object store, and more than any dtype needs

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


class Witness:
    """Checksums of the weights where they lie, taken apart from the payload's and never from a copy of it.

    What was sealed is compared with them: a buffer that holds an older version, a gather that was not whole, a copy
    that had not ended when it was read.
    """

    def __init__(self, num_threads: int = 1) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="witness")
        self.begin()

    def begin(self) -> None:
        """Forget what was seen."""
        self._seen: list[tuple[str, str, tuple[int, ...], int]] = []

    def add(self, portion: Mapping[str, torch.Tensor]) -> None:
        """See some tensors; returns once their memory may be used again."""
        flats = [
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for tensor in portion.values()
        ]
        sums = self._threads.map(checksum, flats)
        for (name, tensor), found in zip(portion.items(), sums, strict=True):
            self._seen.append((name, _dtype(name, tensor), tuple(tensor.shape), found))

    def digest(self) -> str:
        """The `weights_digest` of all that was seen."""
        return weights_digest(self._seen)


class PayloadWriter:
    """Writes versions into a buffer of its own, one after the other; on `num_threads` threads.

    A handle's payload is a view of that buffer: valid until the next version is begun.
    """

    def __init__(self, num_threads: int = 1) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="payload")
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self.begin(0)

    def begin(self, version: int, num_bytes: int = 0) -> None:
        """Start on a version of about `num_bytes`; what was written before is gone."""
        self._version, self._used = version, 0
        self._entries: list[TensorEntry] = []
        self._expected_bytes = num_bytes

    def add(self, portion: Mapping[str, torch.Tensor]) -> None:
        """Write some tensors, whole; returns once their memory may be used again.

        Raises `RunFailed` on a non-finite weight: a diverged policy is never published.
        """
        require_finite(portion, self._version)
        places = [self._place(name, tensor) for name, tensor in portion.items()]
        self._make_room(any(tensor.is_cuda for tensor in portion.values()))
        payload = self._buffer.numpy()
        jobs = []
        for (name, offset, size), tensor in zip(places, portion.values(), strict=True):
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8) if size else None
            target = payload[offset : offset + size]
            if flat is not None and flat.device.type != "cpu":
                torch.from_numpy(target).copy_(flat, non_blocking=True)
                flat = None
            jobs.append((name, tensor, offset, size, target, flat))
        if any(tensor.is_cuda for tensor in portion.values()):
            torch.cuda.synchronize()
        for job, found in zip(jobs, self._threads.map(lambda job: _fill(job[4], job[5]), jobs), strict=True):
            name, tensor, offset, size = job[:4]
            self._entries.append(TensorEntry(name, _dtype(name, tensor), tuple(tensor.shape), offset, size, found))

    def finish(self, canary: Canary | None) -> WeightsHandle:
        """The handle of the version."""
        manifest = Manifest(self._version, self._used, tuple(self._entries), canary)
        payload = self._buffer.numpy()[: self._used]
        return WeightsHandle(self._version, manifest.to_json(), payload, manifest.fingerprint, self._used)

    def _place(self, name: str, tensor: torch.Tensor) -> tuple[str, int, int]:
        """Name, offset and bytes of the next tensor."""
        _dtype(name, tensor)
        offset, size = self._used, tensor.numel() * tensor.element_size()
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        return name, offset, size

    def _make_room(self, on_gpu: bool) -> None:
        """A buffer that holds what is placed; page-locked for a GPU, and otherwise not touched before it is written."""
        if self._used <= len(self._buffer):
            return
        old, wanted = self._buffer, max(self._used, self._expected_bytes)
        self._buffer = torch.empty(wanted, dtype=torch.uint8, pin_memory=on_gpu)
        written = min(len(old), self._entries[-1].offset + self._entries[-1].num_bytes if self._entries else 0)
        self._buffer[:written] = old[:written]


def build_handle(named_tensors: Mapping[str, torch.Tensor], version: int, canary: Canary | None) -> WeightsHandle:
    """The handle of `named_tensors` (Hugging Face names), in a payload that is its own."""
    writer = PayloadWriter()
    writer.begin(version)
    writer.add(named_tensors)
    return writer.finish(canary)


def require_finite(tensors: Mapping[str, torch.Tensor], version: int) -> None:
    """Raise `RunFailed` where a weight is NaN or infinite.

    A sum is not finite if any of its terms is not; reading once, it is 20 times as fast as `isfinite` on the CPU, and
    one answer comes back from a GPU, not one per tensor. A sum may also overflow: then each weight is looked at.
    """
    floats = {n: t for n, t in tensors.items() if t.is_floating_point() and t.element_size() > 1 and t.numel()}
    if not floats:
        return
    sums = torch.stack([tensor.detach().sum().double() for tensor in floats.values()])
    if bool(torch.isfinite(sums).all()):
        return
    for name, tensor in floats.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RunFailed(
                f"weights must be finite to be published (got NaN or infinity in tensor {name} of version {version}); "
                f"lower learner.lr and resume from the last checkpoint"
            )


def _fill(target: np.ndarray[Any, Any], source: torch.Tensor | None) -> int:
    """The checksum of one tensor, once `source` is copied to `target` (without a source: of what stands there)."""
    bytes_of = target if source is None else source.numpy()
    found = 0
    for at in range(0, len(target), BLOCK_BYTES):
        piece = bytes_of[at : at + BLOCK_BYTES]
        if source is not None:
            target[at : at + BLOCK_BYTES] = piece
        found = checksum(piece, found)  # while it is in the processor's cache
    return found


def _dtype(name: str, tensor: torch.Tensor) -> str:
    """The dtype's name; raises `ValueError` on one that no payload carries."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name} has dtype {dtype}; expected one of {sorted(DTYPES)}")
    return dtype
