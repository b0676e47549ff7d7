"""LoRA: low-rank matrices beside frozen linear layers, by peft, as seen by a learner, its engines and its checkpoints.

    in memory     home.base_layer.weight [o, i] (frozen), home.lora_A.default.weight [r, i], …lora_B… [o, r]
    published     A and B alone, under their layer's name in the model's files (`weights.contents`), or
                  home.weight = base + alpha / r * B A, as the files name it
    kept          A and B alone, under peft's names

Invariant: the base is never written. With B = 0, as training begins, the model is the base to the last bit; with the
adapters off it is so always, and that is the reference of a KL term, which needs no second copy.
r rank, i inputs, o outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from capo_ray.config.lora import LoraConfig
from capo_ray.learners.backend import home_of
from capo_ray.protocols import RunFailed
from capo_ray.weights import merged

NAME = "default"  # peft's, of the one adapter that there is
MODEL_FILE = "adapter_model"
"""Of the files, in a checkpoint, that hold the adapters alone: their tensors, and as JSON peft's configuration."""
_IN_BLOCKS = re.compile(r"\.\d+\..*?([^.]+)$")
Pair = tuple[torch.Tensor, torch.Tensor]


def targets_of(names: Iterable[str], asked: tuple[str, ...], path: str) -> tuple[str, ...]:
    """The last names of linear layers that get adapters, of all linear layers `names`; RunFailed where one is missing.

    Layers outside the numbered blocks (the head) and experts, which are trained through no layer of their own, are
    none of them.
    """
    there = sorted({found[1] for name in names if ".experts." not in name and (found := _IN_BLOCKS.search(name))})
    missing = [name for name in asked if name not in there]
    if missing or not there:
        raise RunFailed(
            f"learner.lora.targets must name linear layers of the blocks of {path} (got "
            f"{', '.join(missing) or 'a model without any'}); it has {', '.join(there) or 'none'}"
        )
    return tuple(sorted(asked)) or tuple(there)


class Adapters:
    """The adapters of one model, which is frozen around them; `model` is changed in place."""

    def __init__(self, model: Any, config: LoraConfig, path: str, seed: int) -> None:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        targets = targets_of(linears, config.targets, path)
        self._config = PeftConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=list(targets),
            task_type="CAUSAL_LM",
            base_model_name_or_path=path,
        )
        inject_adapter_in_model(self._config, model)
        self.scale = config.alpha / config.rank
        """Of B A, where it is added to W."""
        self._layers: dict[str, Any] = {
            f"model.{name}": module for name, module in model.named_modules() if isinstance(module, LoraLayer)
        }
        self._kept: Mapping[str, Pair] = {}
        # One seed for all ranks, layer by layer: whatever a backend does with what its ranks bring, they agree.
        generator = torch.Generator().manual_seed(seed)
        for name, layer in self._layers.items():
            first = layer.lora_A[NAME].weight
            bound = first.shape[1] ** -0.5
            if not first.is_meta:
                first.data = torch.empty(first.shape).uniform_(-bound, bound, generator=generator)
            layer.register_forward_hook(lambda _, args, output, name=name: self._add_kept(name, args[0], output))
        self._as_reference = False

    def merge(self, portion: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights of a portion under the names that they had without adapters, these added to their bases.

        Sums are made in fp32 and rounded once. What has no adapter is as it was given, not copied.
        """
        found: dict[str, torch.Tensor] = {}
        for name, tensor in portion.items():
            home = home_of(name)
            if is_adapter(name):
                continue
            if home == name:
                found[name] = tensor
            elif name.endswith(".base_layer.weight"):
                first, second = (portion[f"{home}.lora_{side}.{NAME}.weight"] for side in "AB")
                found[f"{home}.weight"] = merged(tensor, first, second, self.scale)
            else:
                found[f"{home}.{name.rsplit('.', 1)[1]}"] = tensor
        return found

    def to_files(self, weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """(tensors, configuration) of the adapters among `weights`, as peft reads them from a directory."""
        tensors = {
            "base_model." + name.replace(f".{NAME}.", "."): tensor
            for name, tensor in weights.items()
            if is_adapter(name)
        }
        fields = {
            key: list(value) if isinstance(value, set) else value for key, value in self._config.to_dict().items()
        }
        facts: dict[str, object] = json.loads(json.dumps(fields | {"inference_mode": True}, default=str))
        return tensors, facts

    def keep(self, pairs: Mapping[str, Pair]) -> None:
        """Makes the reference the base with these adapters (A, B by the layer's name); with none: the base."""
        self._kept = pairs

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """The model is the reference as long as this lasts."""
        # Not peft's own switch: it also takes the adapters' requires_grad, and with it the hooks of a backend.
        for layer in self._layers.values():
            layer._disable_adapters = True
        self._as_reference = True
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer._disable_adapters = False
            self._as_reference = False

    def _add_kept(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if not self._as_reference or name not in self._kept:
            return output
        first, second = (tensor.to(inputs) for tensor in self._kept[name])
        return output + linear(linear(inputs, first), second) * self.scale


def is_adapter(name: str) -> bool:
    """Whether a weight of the module in memory is one of the adapters' own."""
    return f".lora_A.{NAME}." in name or f".lora_B.{NAME}." in name


def without_adapters(portion: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The frozen weights of a portion under the names that they had without adapters."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in portion.items() if not is_adapter(name)}


def to_pairs(weights: Mapping[str, torch.Tensor]) -> dict[str, Pair]:
    """(A, B) by the name of their layer."""
    homes = dict.fromkeys(home_of(name) for name in weights if is_adapter(name))
    sides = ((home, tuple(weights[f"{home}.lora_{side}.{NAME}.weight"] for side in "AB")) for home in homes)
    return {home: (pair[0], pair[1]) for home, pair in sides}
