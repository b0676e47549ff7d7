"""The frozen policy from which the KL term measures: the model that the run began with, until it is refreshed.

Invariant: what it holds survives a resume. As long as it is the first model, that is a matter of loading it again; once
refreshed, its weights are part of every checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from capo_ray.learners.microbatch import Microbatch
from capo_ray.learners.policy import load_policy
from capo_ray.learners.zero import ZeroBackend
from capo_ray.protocols import RunFailed

WEIGHTS_FILE = "reference.safetensors"
NOTES_FILE = "reference.json"


class Reference:
    """One rank's whole copy; `version` counts the updates behind its weights (0: the first model)."""

    def __init__(self, model_path: str, dtype: str, device: str) -> None:
        self._source = (model_path, dtype, device)
        self._policy = self._first()
        self.version = 0

    @torch.no_grad()
    def logprobs(self, cell: Microbatch, temperature: float) -> torch.Tensor:
        """The logprobs [N] of a cell's tokens at the sampling temperature."""
        logprobs: torch.Tensor = self._policy(cell.inputs, temperature)[0]
        return logprobs

    def refresh(self, backend: ZeroBackend, version: int) -> None:
        """Takes over the weights under training; collective."""
        backend.copy_weights(self._policy)
        self.version = version

    def save(self, directory: Path, rank: int) -> None:
        """Writes the weights once refreshed, from rank 0: every rank holds the same."""
        if not self.version or rank:
            return
        from safetensors.torch import save_file

        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self._policy.named_parameters()}
        save_file(weights, directory / WEIGHTS_FILE)
        (directory / NOTES_FILE).write_text(json.dumps({"version": self.version}))

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Restores what `save` wrote; a checkpoint without it is one of the first model."""
        notes = directory / NOTES_FILE
        if not notes.is_file():
            if self.version:
                self._policy, self.version = self._first(), 0
            return
        from safetensors.torch import load_file

        weights = load_file(directory / WEIGHTS_FILE)
        places = dict(self._policy.named_parameters())
        if weights.keys() != places.keys():
            raise RunFailed(
                f"{directory / WEIGHTS_FILE} must hold this model's tensors (got {len(weights)}, expected "
                f"{len(places)}); resume with the same model.path"
            )
        for name, tensor in weights.items():
            places[name].copy_(tensor)
        self.version = json.loads(notes.read_text())["version"]

    def _first(self) -> torch.nn.Module:
        path, dtype, device = self._source
        return load_policy(path, dtype).requires_grad_(False).eval().to(device)
