"""Adapters on a small model, as a learner sends them alone, and an engine that takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from capo_ray.config.lora import LoraConfig
from capo_ray.weights import AdaptersAlone, Onto, checkpoint_shapes
from capo_ray.weights.contents import adapter_shapes, base_of

LORA = LoraConfig(rank=4, alpha=8.0)
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class AdapterWorld:
    """The model of the files at `path`, with adapters on all of its linear layers."""

    path: Path
    tied: bool = True

    @property
    def contents(self) -> AdaptersAlone:
        return AdaptersAlone(str(self.path), checkpoint_shapes(str(self.path)), "float32", self.tied, LORA)

    @property
    def onto(self) -> Onto:
        return Onto(base_of(str(self.path), "float32", tuple(self.contents.base)), 2.0)

    def pairs(self, seed: int, spread: float = 0.2) -> dict[str, torch.Tensor]:
        """A and B of all layers."""
        generator = torch.Generator().manual_seed(seed)
        shapes = adapter_shapes(checkpoint_shapes(str(self.path)), LORA)
        return {name: spread * torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    def merged(self, first: State, pairs: State) -> dict[str, torch.Tensor]:
        """W + 2 B A, in float64, of the model's weights `first`."""
        found = dict(first)
        for name in [name for name in pairs if ".lora_A." in name]:
            layer = name.removesuffix(".lora_A.weight")
            product = pairs[f"{layer}.lora_B.weight"].double() @ pairs[name].double()
            found[f"{layer}.weight"] = (first[f"{layer}.weight"].double() + 2.0 * product).float()
        return found


@contextmanager
def taking(engine: Any, adapters: AdapterWorld) -> Iterator[None]:
    """The engine, which was started for whole versions, takes adapters alone until the block ends."""
    usual = engine._arrivals.contents
    engine._arrivals.contents = adapters.contents
    try:
        yield
    finally:
        engine._arrivals.contents = usual
