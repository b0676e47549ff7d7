"""JSON state files, replaced whole: a reader finds the old content or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class CheckpointCorrupt(RuntimeError):
    """A checkpoint is not what was written; the message names the file at fault."""


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace `path` by `state` as JSON, on disk when this returns."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(state, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_directory(path.parent)


def read_state(path: Path) -> dict[str, Any]:
    """The state written by `write_state`; raises `CheckpointCorrupt` naming the file when there is no such thing."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointCorrupt(f"{path} cannot be read as state ({error}); resume from another checkpoint") from error
    if not isinstance(state, dict):
        raise CheckpointCorrupt(
            f"{path} should hold a JSON object, got {type(state).__name__}; resume from another one"
        )
    return state


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` outlive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
