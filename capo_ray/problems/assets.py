"""The checkpoints shipped with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_ASSETS = Path(__file__).resolve().parent.parent / "assets"


def asset_path(name: str, role: Literal["policy", "critic"]) -> Path:
    """The directory behind a model name: `laptop` is the checkpoint shipped for the role, any other name is itself."""
    return _ASSETS / f"chains-{role}" if name == "laptop" else Path(name)
