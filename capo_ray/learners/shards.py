"""One rank's part of a checkpoint: copied to host memory at one moment, written while training goes on.

    snapshot (ranks stand still: one copy) -> save: rankN.safetensors, then rankN.json -> digests of both

Nothing in it could run code when read. The JSON is written last: a shard without it was not finished.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capo_ray.learners.export import ModelSource, export_model
from capo_ray.learners.files import write_json, write_tensors
from capo_ray.protocols import RunFailed
from capo_ray.types import WrittenFile


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one rank gives to a checkpoint, on the CPU and its own: later updates do not reach it.

    `extra` are further files of tensors by name, with notes of their own; `policy` is there on rank 0 of the policy.
    """

    rank: int
    tensors: dict[str, torch.Tensor]
    facts: dict[str, object]
    generators: dict[str, Any]
    extra: dict[str, tuple[dict[str, torch.Tensor], dict[str, object]]] = field(default_factory=dict)
    policy: tuple[ModelSource, dict[str, torch.Tensor]] | None = None

    def save(self, path: str) -> tuple[WrittenFile, ...]:
        """This rank's files, written into the directory `path`, which must be there."""
        weights, notes = _names(_existing(path), self.rank)
        written = []
        for name, (tensors, its_notes) in self.extra.items():
            written.append(write_tensors(Path(path, f"{name}.safetensors"), tensors))
            written.append(write_json(Path(path, f"{name}.json"), its_notes))
        written.append(write_tensors(weights, self.tensors))
        written.append(write_json(notes, {"facts": self.facts, "generators": self.generators}))
        return tuple(written)

    def export(self, path: str) -> tuple[WrittenFile, ...]:
        """The files of the policy as a Hugging Face model directory; none on ranks that do not hold it."""
        if self.policy is None:
            return ()
        source, weights = self.policy
        for name, tensor in weights.items():  # looked at here, where nobody waits for it
            if not bool(torch.isfinite(tensor).all()):
                raise RunFailed(f"weights must be finite to be kept (got NaN or infinity in {name})")
        return export_model(source, weights, _existing(path))


def snapshot(rank: int, tensors: dict[str, torch.Tensor], facts: dict[str, object], **more: Any) -> Snapshot:
    """The snapshot of `tensors` (already copies) with the state of torch's, numpy's and python's generators."""
    numpy_state: Any = np.random.get_state(legacy=False)
    generators: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
    }
    tensors = {**tensors, "rng.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    return Snapshot(rank, tensors, facts, generators, **more)


def copy_to_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU, also of what is there already: the originals go on being trained."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


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


def _existing(path: str) -> Path:
    """The directory that the driver made; making it here would hide that this node does not see the driver's."""
    if not Path(path).is_dir():
        raise RunFailed(
            f"expected the directory {path}, made by the driver, to be seen by every learner rank, but a rank's node "
            f"has none there; put run.dir on a file system that all nodes share"
        )
    return Path(path)


def _names(directory: Path, rank: int) -> tuple[Path, Path]:
    return directory / f"rank{rank}.safetensors", directory / f"rank{rank}.json"
