"""The weights under training as the world outside names them: those of the model's own files.

backend --a portion--> merged (with adapters) --> names of files --> engines, exports, checkpoints
                   --> A and B, if alone      --> their layer's  --> engines
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from capo_ray.learners.adapters import Adapters, is_adapter, to_pairs, without_adapters
from capo_ray.learners.backend import Backend
from capo_ray.learners.file_names import FileNames, Files, require_files_weights
from capo_ray.learners.shards import copy_to_host
from capo_ray.protocols import RunFailed
from capo_ray.weights import Witness, base_fingerprint, pair_names, require_finite

Portion = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Outward:
    """One rank's view; every method is collective. `alone`: engines are sent adapters and no other weight."""

    backend: Backend
    names: FileNames
    adapters: Adapters | None
    alone: bool = False

    def visit(self, visit: Callable[[Portion], None]) -> None:
        """Calls `visit` on rank 0 with all that engines are sent, a portion at a time, valid until `visit` returns."""
        if self.alone:
            self.backend.visit_weights(lambda portion: visit(self._pairs(portion)), trained_only=True)
        else:
            self.backend.visit_weights(lambda portion: visit(self._named(portion)))

    def require_files_weights(self, path: str, num_threads: int, left_out: frozenset[str] = frozenset()) -> str:
        """The fingerprint of the model without adapters (rank 0), which depends on its weights in their dtype alone.

        Raises RunFailed unless what the model's files at `path` hold is what would be published now, or its base.
        `left_out`: what of the files is no part of the model.
        """
        files, witness = Files(path), Witness(num_threads)

        def compare(portion: Portion) -> None:
            # Not the merged one: W + 0 is W, but -0 + 0 has other bits than -0.
            base = self.names.to_files(portion if self.adapters is None else without_adapters(portion))
            require_files_weights(base if self.alone else self._named(portion), files, path)
            witness.add({name: tensor for name, tensor in base.items() if name not in left_out})

        self.backend.visit_weights(compare)
        return base_fingerprint(witness.seen) if witness.seen else ""

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

    def _pairs(self, portion: Portion) -> Portion:
        found: Portion = {}
        for home, (first, second) in to_pairs(portion).items():
            found |= dict(zip(pair_names(self._layer(home, first, second)), (first, second), strict=True))
        return found

    def _layer(self, home: str, first: torch.Tensor, second: torch.Tensor) -> str:
        """The name in the model's files of a layer with adapters; RunFailed where they hold it in another form."""
        whole = torch.empty(second.shape[0], first.shape[1], device="meta")
        (name, stored), *more = self.names.to_files({f"{home}.weight": whole}).items()
        if more or stored.shape != whole.shape or not name.endswith(".weight"):
            raise RunFailed(
                f"adapters can be sent alone only of layers that the model's files hold as they are (got {home}, "
                f"which they hold as {name}); set weights.adapters=merged"
            )
        return name.removesuffix(".weight")
