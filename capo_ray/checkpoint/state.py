"""JSON state files, replaced whole: a reader finds the old content or the new one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capo_ray.protocols import RunFailed
from capo_ray.runs.files import replace_whole


class CheckpointCorrupt(RunFailed):
    """A checkpoint is not what was written; the message names the file at fault."""


class Unreadable(RunFailed):
    """A file system would not show a file: perhaps for a while only, so this is no damage and nothing is given up."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> Unreadable:
        """The sentence about one file."""
        return cls(
            f"{path} cannot be read now ({error.strerror or error}); it is not taken for damaged: try again once its "
            f"file system answers"
        )


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace `path` by `state` as JSON, on disk when this returns."""
    replace_whole(path, to_bytes(state))


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """The state as JSON; without indentation, which would take json's slow path for a cursor of many problems."""
    return (json.dumps(state) + "\n").encode()


def read_state(path: Path) -> dict[str, Any]:
    """The state written by `write_state`; `CheckpointCorrupt` or `Unreadable` name the file when there is none."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointCorrupt(f"{path} cannot be read as state ({error}); resume from another checkpoint") from error
    except OSError as error:
        raise Unreadable.of(path, error) from error
    try:
        state = json.loads(raw)
    except ValueError as error:
        raise CheckpointCorrupt(f"{path} cannot be read as state ({error}); resume from another checkpoint") from error
    if not isinstance(state, dict):
        raise CheckpointCorrupt(
            f"{path} should hold a JSON object, got {type(state).__name__}; resume from another one"
        )
    return state
