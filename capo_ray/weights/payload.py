"""The flat bytes of one version, written once and read without a copy.

payload: | tensor 0 | pad | tensor 1 | pad | ...      every offset a multiple of 64 bytes, pads zero
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from capo_ray.protocols import WeightsHandle
from capo_ray.weights.manifest import Canary, Manifest, TensorEntry, WeightsRefused, read_manifest

ALIGNMENT = 64  # of Ray's object store, and more than any dtype needs

_DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


def build_handle(named_tensors: Mapping[str, torch.Tensor], version: int, canary: Canary | None) -> WeightsHandle:
    """The handle of `named_tensors` (Hugging Face names); its payload is a uint8 array that owns its bytes.

    Raises `ValueError` on a non-finite weight: a diverged policy is never published.
    """
    placed: list[tuple[str, torch.Tensor, int]] = []
    at = 0
    for name, tensor in named_tensors.items():
        placed.append((name, tensor, at))
        at += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
    payload = np.zeros(at, dtype=np.uint8)
    entries: list[TensorEntry] = []
    for name, tensor, offset in placed:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise ValueError(f"tensor {name} has dtype {dtype}; expected one of {sorted(_DTYPES)}")
        if tensor.is_floating_point() and tensor.element_size() > 1 and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name} of version {version} is not finite; it must not be published")
        size = tensor.numel() * tensor.element_size()
        target = payload[offset : offset + size]
        if size:
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            torch.from_numpy(target).copy_(flat.view(torch.uint8))
        entries.append(TensorEntry(name, dtype, tuple(tensor.shape), offset, size, zlib.crc32(target.data)))
    manifest = Manifest(version, at, tuple(entries), canary)
    return WeightsHandle(version=version, manifest=manifest.to_json(), payload=payload)


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


def iterate_tensors(manifest: Manifest | str, payload: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor with its name, a view of the payload that must not be written to, once its checksum was compared."""
    manifest = read_manifest(manifest) if isinstance(manifest, str) else manifest
    array = as_bytes(payload)
    if array.nbytes != manifest.payload_bytes:
        raise WeightsRefused(
            f"weights payload of version {manifest.version} has {array.nbytes} bytes, expected {manifest.payload_bytes}"
        )
    for entry in manifest.tensors:
        piece = _piece(entry, array)
        if zlib.crc32(piece.data) != entry.crc32:
            raise WeightsRefused(
                f"tensor {entry.name} of version {manifest.version} is damaged (checksum differs); publish it again"
            )
        yield entry.name, _view(piece, entry)


def verify_handle(handle: WeightsHandle) -> Manifest:
    """The handle's manifest, once every tensor of the payload was compared with it."""
    manifest = read_manifest(handle.manifest)
    if manifest.version != handle.version:
        raise WeightsRefused(f"weights handle says version {handle.version}, its manifest {manifest.version}")
    seen: set[str] = set()
    for name, _ in iterate_tensors(manifest, handle.payload):
        if name in seen:
            raise WeightsRefused(f"tensor {name} of version {manifest.version} comes twice")
        seen.add(name)
    return manifest


def _piece(entry: TensorEntry, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of one tensor."""
    dtype = _DTYPES.get(entry.dtype)
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
        return torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(piece)
    return flat.view(_DTYPES[entry.dtype]).reshape(entry.shape)
