"""The checkpoints shipped with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from capo_ray.config.shipped import SHIPPED

_ASSETS = Path(__file__).resolve().parent.parent / "assets"


def asset_path(name: str, role: Literal["policy", "critic"]) -> Path:
    """The directory behind a model name: that of the checkpoint shipped for the role, or the name itself.

    A `~` is the home of whoever asks: who is handed the path loads it as it is.
    """
    if name in SHIPPED[role]:
        return _ASSETS / f"{name.replace('laptop', 'chains')}-{role}"
    return Path(os.path.expanduser(name))  # leaves `~` of nobody as it is, where Path's raises
