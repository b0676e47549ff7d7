"""The weights under training as the world outside names them: those of the model's own files, adapters added in.

backend --a portion--> merged (with adapters) --> names of files --> engines, exports, checkpoints
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from capo_ray.learners.adapters import Adapters, is_adapter
from capo_ray.learners.backend import Backend
from capo_ray.learners.file_names import FileNames, Files, require_files_weights
from capo_ray.learners.shards import copy_to_host
from capo_ray.weights import require_finite

Portion = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Outward:
    """One rank's view; every method is collective."""

    backend: Backend
    names: FileNames
    adapters: Adapters | None

    def visit(self, visit: Callable[[Portion], None]) -> None:
        """Calls `visit` on rank 0 with all weights, a portion at a time, valid until `visit` returns."""
        self.backend.visit_weights(lambda portion: visit(self._named(portion)))

    def require_files_weights(self, path: str) -> None:
        """Raises RunFailed unless what would be published now is what the model's files at `path` hold."""
        files = Files(path)
        self.visit(lambda portion: require_files_weights(portion, files, path))

    def copies(self, version: int) -> tuple[Portion, Portion]:
        """(all weights, those of the adapters by their names in memory), finite, on the CPU of rank 0."""
        named: Portion = {}
        beside: Portion = {}

        def keep(portion: Portion) -> None:
            found = self._named(portion)
            require_finite(found, version)
            named.update(copy_to_host(found))
            beside.update(copy_to_host({name: tensor for name, tensor in portion.items() if is_adapter(name)}))

        self.backend.visit_weights(keep)
        return named, beside

    def _named(self, portion: Portion) -> Portion:
        return self.names.to_files(portion if self.adapters is None else self.adapters.merge(portion))
