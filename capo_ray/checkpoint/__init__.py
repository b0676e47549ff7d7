"""The checkpoint room: directories that are whole or not there, and small JSON state files."""

from capo_ray.checkpoint.state import read_state, write_state
from capo_ray.checkpoint.store import MANIFEST, CheckpointCorrupt, CheckpointStore

__all__ = ["MANIFEST", "CheckpointCorrupt", "CheckpointStore", "read_state", "write_state"]
