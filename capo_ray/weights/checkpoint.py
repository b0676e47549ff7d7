"""What the model's files hold, and what a published version of it will weigh, from their headers alone."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
LOOKS, LOOK_BYTES = 64, 16 << 10
"""At a file of weights, to tell it from another."""


def checkpoint_shapes(model_path: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model's safetensors files, from their headers alone."""
    return {name: tuple(info["shape"]) for name, (_, info) in _headers(model_path).items()}


def checkpoint_files(model_path: str) -> dict[str, Path]:
    """The file that holds each tensor of the model."""
    return {name: file for name, (file, _) in _headers(model_path).items()}


def files_revision(model_path: str) -> str:
    """12 hex digits of what the model's safetensors files hold, the same wherever they lie; empty where none are here.

    Of each its size and `LOOKS` pieces of it, evenly spread: a second for tens of GB; no training leaves them alone.
    """
    digest = hashlib.sha256()
    try:
        for file in sorted({file for file, _ in _headers(model_path).values()}):
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with file.open("rb") as stream:
                for look in range(LOOKS):
                    stream.seek(size * look // LOOKS)
                    digest.update(stream.read(LOOK_BYTES))
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()[:12]


def _headers(model_path: str) -> dict[str, tuple[Path, dict[str, Any]]]:
    """File and header entry of every tensor."""
    root = Path(model_path)
    if not root.is_dir():
        from huggingface_hub import snapshot_download

        root = Path(snapshot_download(model_path, allow_patterns=["*.safetensors*"], local_files_only=True))
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in sorted(root.glob("*.safetensors")):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        found |= {name: (file, info) for name, info in header.items() if name != "__metadata__"}
    if not found:
        raise ValueError(f"{root} must hold *.safetensors files, so that published weights can be compared with them")
    # Old Llama checkpoints carry this constant; nobody trains it.
    return {name: place for name, place in found.items() if not name.endswith("rotary_emb.inv_freq")}


def publish_bytes(model_path: str, dtype: str) -> int | None:
    """The bytes of one published version of the model; None where its files are not here to be measured."""
    try:
        shapes = checkpoint_shapes(model_path)
    except (OSError, ValueError):
        return None
    return sum(math.prod(shape) for shape in shapes.values()) * DTYPE_BYTES[dtype]
