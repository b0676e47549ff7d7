"""A run's settings as YAML under a first line with their digest: half a file, or a flipped bit, is not settings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from capo_ray.checkpoint.state import CheckpointCorrupt, Unreadable
from capo_ray.runs.files import replace_whole

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's takes a quarter of the time
_FIRST_LINE = re.compile(rb"# sha256 of the lines below: ([0-9a-f]{64})\n")


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Replace `path` by the settings, whole and on disk when this returns."""
    body = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).encode()
    replace_whole(path, _first_line(body) + body)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings written by `write_settings`; `CheckpointCorrupt` names the file where it is not as written."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Unreadable.of(path, error) from error
    first = _FIRST_LINE.match(raw)
    body = raw[first.end() :] if first else raw
    if first is None or first[0] != _first_line(body):
        what = "has no line with its sha256" if first is None else "is not as it was written"
        raise CheckpointCorrupt(
            f"{path} {what}: cut short, damaged or edited; give changes on the command line (resume=RUN key=value), or "
            f"vouch for what it holds by this first line: {_first_line(body).decode().strip()}"
        )
    settings = yaml.load(body, Loader=_Loader)
    if not isinstance(settings, dict):
        raise CheckpointCorrupt(f"{path} should hold a mapping, got {type(settings).__name__}")
    return settings


def _first_line(body: bytes) -> bytes:
    return b"# sha256 of the lines below: " + hashlib.sha256(body).hexdigest().encode() + b"\n"
