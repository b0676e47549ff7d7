"""The frozen policy from which the KL term measures: the model that the run began with, until it is refreshed.

Who holds which bytes (N weights of u bytes, R ranks of the group), whatever the ZeRO stage:

    R = 1                     N u on the device, as long as learner.offload_reference is false
    R > 1                     N u / R on each rank's device, and at most two layers (or the embedding) whole, in a pass
    offload_reference=true    N u / R in each rank's host memory, the same two layers on the device, in a pass

At its start a rank reads the files through the page cache, which a host holds once, and copies its own part alone.

Invariant: what it holds survives a resume. As long as it is the first model, that is a matter of loading it again; once
refreshed, its weights are part of every checkpoint, each rank's part in a file of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from capo_ray.learners import shards
from capo_ray.learners.adapters import Adapters, is_adapter, to_pairs
from capo_ray.learners.backend import Backend
from capo_ray.learners.microbatch import Microbatch
from capo_ray.learners.policy import Policy, load_policy
from capo_ray.learners.pretrained import DTYPES, place
from capo_ray.learners.sequence import SequenceGroup
from capo_ray.learners.sharded import ShardedModule
from capo_ray.learners.spec import RankSpec
from capo_ray.protocols import RunFailed


class Reference:
    """One rank's part of it, or all of it; `version` counts the updates behind its weights (0: the first model)."""

    def __init__(
        self, model_path: str, spec: RankSpec, device: torch.device, sequence: SequenceGroup | None = None
    ) -> None:
        self._path, self._spec, self._device, self._sequence = model_path, spec, device, sequence
        self._policy = self._first()
        self.version = 0

    @torch.no_grad()
    def logprobs(self, cell: Microbatch, temperature: float) -> torch.Tensor:
        """The logprobs [N] of a cell's tokens at the sampling temperature; collective."""
        logprobs: torch.Tensor = self._policy(cell.inputs, temperature)[0]
        return logprobs

    def refresh(self, backend: Backend, version: int) -> None:
        """Takes over the weights under training; collective."""
        backend.read_weights(self._write)
        self.version = version

    def snapshot(self) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, object]]]:
        """Copies of this rank's part of the weights, once refreshed, and their notes, by the name of its files."""
        parts = self._parts()
        if not self.version or not parts:
            return {}
        return {self._name: (shards.copy_to_host(parts), {"version": self.version})}

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Restores what a checkpoint keeps of `snapshot`; a checkpoint without it is one of the first model."""
        file, notes = directory / f"{self._name}.safetensors", directory / f"{self._name}.json"
        if not notes.is_file():
            if self.version:
                self._policy, self.version = self._first(), 0
            return
        from safetensors.torch import load_file

        weights, places = load_file(file), self._parts()
        if {name: t.shape for name, t in weights.items()} != {name: t.shape for name, t in places.items()}:
            raise RunFailed(
                f"{file} must hold this rank's part of this model (got {len(weights)} tensors, expected {len(places)}, "
                f"or other shapes); resume with the same model.path"
            )
        for name, tensor in weights.items():
            places[name].copy_(tensor)
        self.version = json.loads(notes.read_text())["version"]

    def _first(self) -> Policy | ShardedModule:
        spec, device = self._spec, self._device
        if spec.world_size == 1 and not spec.learner.offload_reference:
            policy = self._load().requires_grad_(False).eval()
            place(policy, device, DTYPES[spec.dtype])
            return policy
        return ShardedModule(
            self._load().eval(),
            rank=spec.rank,
            num_ranks=spec.world_size,
            device=device,
            dtype=DTYPES[spec.dtype],
            on_host=spec.learner.offload_reference,
        )

    def _load(self) -> Policy:
        policy = load_policy(self._path, self._spec.dtype, cast=False, shared=self._spec.shared)
        policy.sequence = self._sequence
        return policy

    @torch.no_grad()
    def _write(self, name: str, weight: torch.Tensor) -> None:
        if isinstance(self._policy, ShardedModule):
            self._policy.write(name, weight)
        else:
            self._policy.get_parameter(name).copy_(weight)

    def _parts(self) -> dict[str, torch.Tensor]:
        """The tensors that this rank holds, which a checkpoint keeps."""
        if isinstance(self._policy, ShardedModule):
            return self._policy.shards()
        return dict(self._policy.named_parameters())

    @property
    def _name(self) -> str:
        return f"reference_rank{self._spec.rank}"


class AdapterReference:
    """The policy under training without its adapters, or with those of its last refresh: it holds no model.

    `version` as in `Reference`. Its adapters, once refreshed, are whole on every rank and kept by rank 0.
    """

    def __init__(self, backend: Backend, adapters: Adapters) -> None:
        self._backend, self._adapters = backend, adapters
        self._kept: dict[str, torch.Tensor] = {}
        self.version = 0

    @torch.no_grad()
    def logprobs(self, cell: Microbatch, temperature: float) -> torch.Tensor:
        """As `Reference.logprobs`."""
        with self._adapters.as_reference():
            return self._backend.forward(cell.inputs, temperature)[0]

    def refresh(self, backend: Backend, version: int) -> None:
        """As `Reference.refresh`."""
        kept: dict[str, torch.Tensor] = {}

        def read(name: str, weight: torch.Tensor) -> None:
            if is_adapter(name):
                kept[name] = weight.detach().clone()

        backend.read_weights(read)
        self._take(kept, version)

    def snapshot(self) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, object]]]:
        """Copies of the adapters, once refreshed, and their notes, by the name of their files, on rank 0."""
        if not self.version or self._backend.rank:
            return {}
        return {"reference": (shards.copy_to_host(self._kept), {"version": self.version})}

    def load(self, directory: Path) -> None:
        """As `Reference.load`."""
        from safetensors.torch import load_file

        notes = directory / "reference.json"
        if not notes.is_file():
            self._take({}, 0)
            return
        self._take(load_file(directory / "reference.safetensors"), json.loads(notes.read_text())["version"])

    def _take(self, kept: dict[str, torch.Tensor], version: int) -> None:
        self._kept, self.version = {name: t.to(self._backend.device) for name, t in kept.items()}, version
        self._adapters.keep(to_pairs(self._kept))
