"""The receiver's side: the flat bytes of one version, compared once with their manifest and then read without a copy.

payload: | tensor 0 | pad | tensor 1 | pad | ...      every offset a multiple of 64 bytes
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from capo_ray.protocols import WeightsHandle
from capo_ray.weights.canary import WeightsRefused
from capo_ray.weights.checksum import checksum
from capo_ray.weights.manifest import Manifest, TensorEntry, read_manifest
from capo_ray.weights.writer import DTYPES


def as_bytes(payload: object) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The payload as a flat uint8 array, without a copy; raises `WeightsRefused` if it is something else."""
    if isinstance(payload, np.ndarray):
        array = payload
    elif isinstance(payload, bytes | bytearray | memoryview):
        array = np.frombuffer(payload, dtype=np.uint8)
    else:
        raise WeightsRefused(f"weights payload must be a uint8 buffer (got {type(payload).__name__})")
    if array.dtype != np.uint8 or array.ndim != 1 or not array.flags["C_CONTIGUOUS"]:
        raise WeightsRefused(f"weights payload must be flat uint8 (got {array.dtype}, shape {array.shape})")
    return array


class HostReceiver:
    """`transport.Receiver` of bytes that lie in this host's memory; they are checked beside being taken."""

    def __init__(self, handle: WeightsHandle, num_threads: int = 1) -> None:
        self.manifest = read_manifest(handle.manifest)
        self.payload = _sized(self.manifest, handle.payload)
        self.found: Found = {}
        # On a thread of its own: it reads twice as fast as they are loaded, and what it has read is in the cache then.
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="check")
        self._checking = self._beside.submit(checksums, self.manifest, self.payload, num_threads)

    def take(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As `Receiver.take`."""
        return iterate_tensors(self.manifest, self.payload)

    def finish(self) -> None:
        """As `Receiver.finish`."""
        self._beside.shutdown(wait=False)
        self.found = self._checking.result()


def iterate_tensors(manifest: Manifest | str, payload: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor with its name, a view of the payload that must not be written to."""
    manifest = read_manifest(manifest) if isinstance(manifest, str) else manifest
    array = _sized(manifest, payload)
    for entry in manifest.tensors:
        yield entry.name, _view(_piece(entry, array), entry)


Found = Mapping[tuple[int, int], int]
"""The checksums of a payload's pieces, each by its offset and its bytes."""


def checksums(manifest: Manifest, payload: np.ndarray[Any, Any], num_threads: int = 1) -> Found:
    """The checksum of every piece that the manifest names; raises `WeightsRefused` where one lies outside."""
    pieces = {(entry.offset, entry.num_bytes): _piece(entry, payload) for entry in manifest.tensors}
    with ThreadPoolExecutor(num_threads, thread_name_prefix="verify") as threads:
        return dict(zip(pieces, threads.map(checksum, pieces.values()), strict=True))


def verify_handle(
    handle: WeightsHandle, num_threads: int = 1, found: Found | None = None, came: Manifest | None = None
) -> Manifest:
    """The handle's manifest, once it is the announced one and every tensor of the payload was compared with it.

    `found` is what a receiver made of these very bytes before; without it they are read now. `came`: what tensors a
    receiver was sent, where they are no payload in host memory.
    """
    manifest = read_manifest(handle.manifest)
    if manifest.version != handle.version:
        raise WeightsRefused(f"weights handle says version {handle.version}, its manifest {manifest.version}")
    if handle.fingerprint and handle.fingerprint != manifest.fingerprint:
        raise WeightsRefused(
            f"version {manifest.version} was announced with fingerprint {handle.fingerprint[:12]}, but these weights "
            f"have {manifest.fingerprint[:12]}: they are of another version or were changed on the way"
        )
    names = [entry.name for entry in manifest.tensors]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise WeightsRefused(f"tensor {twice} of version {manifest.version} comes twice")
    known = _seen(manifest, came, found) if came is not None else _read(manifest, handle.payload, num_threads, found)
    for entry in manifest.tensors:
        if known.get((entry.offset, entry.num_bytes)) != entry.checksum:
            raise WeightsRefused(
                f"tensor {entry.name} of version {manifest.version} is damaged, or not what the learner holds "
                f"(checksum differs); publish it again"
            )
    return manifest


def _read(manifest: Manifest, payload: object, num_threads: int, found: Found | None) -> Found:
    """The checksums of a payload as long as the manifest says."""
    array = _sized(manifest, payload)
    for entry in manifest.tensors:
        _piece(entry, array)
    return found if found else checksums(manifest, array, num_threads)


def _seen(manifest: Manifest, came: Manifest, found: Found | None) -> Found:
    """The checksums of the tensors that came, which must be those of the manifest and in its order."""
    if came.places != manifest.places or came.payload_bytes != manifest.payload_bytes:
        pairs = zip_longest(came.places, manifest.places)
        got, expected = next(((a, b) for a, b in pairs if a != b), (None, None))
        raise WeightsRefused(
            f"version {manifest.version} must come with the tensors that its manifest names (got {_named(got)}, "
            f"expected {_named(expected)}); publish it again"
        )
    return found or {}


def _named(entry: TensorEntry | None) -> str:
    return "the end" if entry is None else f"{entry.name} {entry.dtype}{list(entry.shape)}"


def _sized(manifest: Manifest, payload: object) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The payload's bytes, as many as the manifest says."""
    array = as_bytes(payload)
    if array.nbytes != manifest.payload_bytes:
        raise WeightsRefused(
            f"weights payload of version {manifest.version} has {array.nbytes} bytes, expected {manifest.payload_bytes}"
        )
    return array


def _piece(entry: TensorEntry, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of one tensor."""
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise WeightsRefused(f"tensor {entry.name} has the unknown dtype {entry.dtype!r}")
    numel = int(np.prod(entry.shape, dtype=np.int64)) if entry.shape else 1
    end = entry.offset + entry.num_bytes
    if (
        entry.num_bytes != numel * dtype.itemsize
        or entry.offset < 0
        or end > array.nbytes
        or min(entry.shape, default=0) < 0
    ):
        raise WeightsRefused(
            f"tensor {entry.name}: {entry.dtype}{list(entry.shape)} does not fit bytes [{entry.offset}, {end}) "
            f"of a payload of {array.nbytes}"
        )
    return array[entry.offset : end]


def _view(piece: np.ndarray[Any, Any], entry: TensorEntry) -> torch.Tensor:
    """The tensor over `piece`; read-only memory stays read-only by convention (torch has no such flag)."""
    if not piece.nbytes:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(piece)
    return flat.view(DTYPES[entry.dtype]).reshape(entry.shape)
