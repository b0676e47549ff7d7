"""One rank's part of a checkpoint: a safetensors file and a JSON file; nothing that could run code when read.

Both are written beside their names and renamed, the JSON last: a shard without it was not finished.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capo_ray.protocols import RunFailed


def write_shard(directory: Path, rank: int, tensors: dict[str, torch.Tensor], facts: dict[str, object]) -> None:
    """Writes `tensors`, `facts` and the state of torch's, numpy's and python's random generators."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    numpy_state: Any = np.random.get_state(legacy=False)
    generators: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
    }
    tensors = {**tensors, "rng.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    weights, notes = _names(directory, rank)
    save_file(tensors, f"{weights}.part")
    _replace(weights)
    Path(f"{notes}.part").write_text(json.dumps({"facts": facts, "generators": generators}))
    _replace(notes)


def read_shard(directory: Path, rank: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, facts) of this rank; restores the random generators."""
    from safetensors.torch import load_file

    weights, notes = _names(directory, rank)
    if not notes.is_file() or not weights.is_file():
        raise RunFailed(
            f"a learner checkpoint must hold {weights.name} and {notes.name} (got neither whole in {directory})"
        )
    record = json.loads(notes.read_text())
    tensors = load_file(weights)
    version, internal, gauss = record["generators"]["python"]
    random.setstate((version, tuple(internal), gauss))
    state = record["generators"]["numpy"]
    np.random.set_state({**state, "state": {**state["state"], "key": np.array(state["state"]["key"], dtype=np.uint32)}})
    torch.set_rng_state(tensors.pop("rng.torch"))
    cuda = tensors.pop("rng.cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    return tensors, record["facts"]


def _names(directory: Path, rank: int) -> tuple[Path, Path]:
    return directory / f"rank{rank}.safetensors", directory / f"rank{rank}.json"


def _replace(path: Path) -> None:
    """Moves the finished `.part` file to its name, on disk before it is seen."""
    with open(f"{path}.part", "rb") as file:
        os.fsync(file.fileno())
    os.replace(f"{path}.part", path)
