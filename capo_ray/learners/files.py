"""Files that a rank writes: hashed while they are written, on disk and under their name only once whole.

bytes --16 MiB at a time--> sha256 and NAME.part -> fsync -> NAME       nobody has to read them again to seal them
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from capo_ray.types import WrittenFile

CHUNK_BYTES = 16 << 20
_ALIGNMENT = 8  # of the header, by the format
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_bytes(path: Path, chunks: Iterable[bytes | memoryview]) -> WrittenFile:
    """The file `path` of these bytes, which is there whole or not at all; its directory must exist."""
    digest, size = hashlib.sha256(), 0
    part = path.with_name(f"{path.name}.part")
    with part.open("wb", buffering=0) as file:
        for chunk in chunks:
            view = memoryview(chunk)
            for start in range(0, len(view), CHUNK_BYTES):
                piece = view[start : start + CHUNK_BYTES]
                digest.update(piece)
                size += len(piece)
                while piece:  # a raw write may be short
                    piece = piece[file.write(piece) :]
        os.fsync(file.fileno())
    part.replace(path)
    return WrittenFile(path.name, size, digest.hexdigest())


def write_json(path: Path, content: object) -> WrittenFile:
    """The file `path` of `content` as JSON."""
    return write_bytes(path, [json.dumps(content).encode()])


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> WrittenFile:
    """The safetensors file `path` of CPU tensors; the library's own writer gives no bytes to hash on the way."""
    # Wide types first, so that every tensor is aligned to its own width, as the library lays them out.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return write_bytes(
        path,
        (len(text).to_bytes(8, "little"), text, *(_view(tensors[name]) for name in order if tensors[name].numel())),
    )


def _view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, not copied where it is contiguous."""
    flat: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
