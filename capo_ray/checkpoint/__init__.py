"""The checkpoint room: directories that are whole or not there, and small files of state and settings."""

from capo_ray.checkpoint.settings import read_settings, write_settings
from capo_ray.checkpoint.state import CheckpointCorrupt, Unreadable, read_state, write_state
from capo_ray.checkpoint.store import MANIFEST, CheckpointStore, Draft

__all__ = [
    "MANIFEST",
    "CheckpointCorrupt",
    "CheckpointStore",
    "Draft",
    "Unreadable",
    "read_settings",
    "read_state",
    "write_settings",
    "write_state",
]
