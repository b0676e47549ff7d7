"""A second set of a model's layers, which takes new weights while the first computes: a CPU engine's way to stand still
for a moment only.

    twin_of(model) -> load (any thread, the model goes on computing) -> take (no step in flight): pointers move

vLLM's CPU kernels read weights that were packed for them, and packing is what takes the time of a load. A twin runs
vLLM's own loaders and its own packing, layer by layer, on layers that share nothing that changes with the first set.

Invariants: until `take` nothing that the model computes with is written to; a layer that was sent nothing makes `load`
raise, so what is taken is one version whole. What is not known to keep this (experts, quantised weights, buffers of
weights, kernels that derive tensors) has no twin and is loaded in place, as on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from types import MethodType
from typing import Any

import torch

from capo_ray.engines.route import Route, route_of

_OWN = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "quant_method"})


def worker_model(engine: Any) -> Any:
    """The model of the engine's only worker, which lives in this process."""
    return engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.get_model()


def can_have_twin(model: Any) -> bool:
    """Whether every layer is of a kind whose loading was read and found to touch that layer alone."""
    from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    known = (type(None), UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    for layer in model.modules():
        if is_deferred_attention_layer(layer):
            if type(layer) is not Attention or any(p is not None for p in layer._parameters.values()):
                return False
        elif type(getattr(layer, "quant_method", None)) not in known or (layer._parameters and layer._buffers):
            return False
    return all(p.device.type == "cpu" for p in model.parameters())


class Twin:
    """One version of a model's weights, loaded beside the one that serves. Used once."""

    def __init__(self, model: Any, *, tied: bool, route: Route | None = None) -> None:
        self._tied = tied
        self.route = route
        """How tensors come to their layers; where it was not given, it is known after `load`, if at all."""
        self._pairs: list[tuple[torch.nn.Module, torch.nn.Module]] = []
        self._before: dict[torch.nn.Module, dict[str, Any]] = {}
        self.model: Any = self._copy(model, {})

    @torch.no_grad()
    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load and pack one version; raises where a layer was sent nothing."""
        try:
            plain = self._plain_embeddings()
            if self.route is None:
                self._find(tensors)
            else:
                self._follow(self.route, tensors)
            self._loaded = [(layer, twin) for layer, twin in self._pairs if _holds_weights(twin)]
            self._tie_heads()
            for embedding in plain:
                embedding.cpu_linear = torch.nn.functional.linear
        finally:
            self._forget_loaders()

    def take(self) -> None:
        """Let the model compute with what was loaded; call with no step in flight."""
        for layer, twin in self._loaded:
            for name, param in layer._parameters.items():
                if param is not None:
                    param.data = twin._parameters[name].data  # type: ignore[union-attr]
            before = self._before[layer]
            made = {k: v for k, v in twin.__dict__.items() if k not in _OWN and before.get(k, self) is not v}
            layer.__dict__.update(made)

    def _find(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load by the model's own way, and learn it."""
        from vllm.model_executor.model_loader.reload.layerwise import (
            _layerwise_process,
            get_layerwise_info,
            initialize_layerwise_reload,
        )

        from capo_ray.engines.transfer import load_tensors, require_all_layers

        initialize_layerwise_reload(self.model)
        infos = [get_layerwise_info(twin) for _, twin in self._pairs]
        for info in infos:
            info.kernel_tensors = None  # nothing is copied into the layers that serve
        loads = [info.loaded_weights for info in infos]  # a layer that is done gets a new list
        sent: list[tuple[str, torch.Tensor]] = []
        load_tensors(self.model, _noting(tensors, sent))
        require_all_layers(self.model, tied=self._tied)
        for (_, twin), info in zip(self._pairs, infos, strict=True):
            if info.can_load() and info.load_numel:  # vocabularies are padded: not all of it is sent
                _layerwise_process(twin, info)
        self.route = route_of(sent, loads)

    def _follow(self, route: Route, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load by a way that is known: each layer as soon as all that it is sent is there."""
        from vllm.model_executor.model_loader.reload.layerwise import _layerwise_process, get_layerwise_info
        from vllm.model_executor.model_loader.reload.meta import restore_layer_on_meta

        twins = [twin for _, twin in self._pairs]
        left = Counter(call.layer for call in route.calls.values())
        for twin in twins:
            if twin._parameters:
                restore_layer_on_meta(twin, get_layerwise_info(twin))
        for name, tensor in tensors:
            call = route.calls[name]
            info = get_layerwise_info(twins[call.layer])
            info.loaded_weights.append(call.of(tensor))
            left[call.layer] -= 1
            if not left[call.layer]:
                _layerwise_process(twins[call.layer], info)
        if +left:
            raise RuntimeError(f"{len(+left)} layers were not sent all of their weights")

    def _forget_loaders(self) -> None:
        """Undo what ties a twin to itself: it is a whole copy of the weights, and must go when its last user does.

        vLLM holds what it knows of a layer by the layer, and that, as a tensor's loader, names the layer.
        """
        from vllm.model_executor.model_loader.reload.layerwise import LAYERWISE_INFO

        for layer, twin in self._pairs:
            info = LAYERWISE_INFO.pop(twin, None)
            described = info.restore_metadata if info is not None else ()
            shared = {id(tensor) for tensor in (*layer._parameters.values(), *layer._buffers.values())}
            for tensors in (twin._parameters, twin._buffers, *described):
                for tensor in tensors.values():
                    if tensor is not None and id(tensor) not in shared:
                        tensor.__dict__.clear()

    def _copy(self, layer: torch.nn.Module, seen: dict[int, torch.nn.Module]) -> torch.nn.Module:
        """A layer of the same class and settings with a place of its own for every tensor, and its sublayers'."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
        from vllm.model_executor.model_loader.reload.meta import SKIP_TENSORS

        if id(layer) in seen:
            return seen[id(layer)]
        twin = seen[id(layer)] = object.__new__(type(layer))
        self._before[layer] = dict(layer.__dict__)
        twin.__dict__.update(layer.__dict__)
        twin.__dict__["_parameters"] = {
            name: _own(param, layer, twin) if name in SKIP_TENSORS and param is not None else param
            for name, param in layer._parameters.items()
        }
        twin.__dict__["_buffers"] = dict(layer._buffers)
        twin.__dict__["_non_persistent_buffers_set"] = set(layer._non_persistent_buffers_set)
        twin.__dict__["_modules"] = {
            name: None if child is None else self._copy(child, seen) for name, child in layer._modules.items()
        }
        theirs, info = get_layerwise_info(layer), get_layerwise_info(twin)
        parameters, buffers = theirs.restore_metadata
        info.restore_metadata = (
            {name: _own(meta, layer, twin) for name, meta in parameters.items()},
            {name: _own(meta, layer, twin) for name, meta in buffers.items()},
        )
        info.restore_device = theirs.restore_device
        self._pairs.append((layer, twin))
        return twin

    def _plain_embeddings(self) -> list[Any]:
        """The embeddings that no logits are made with, told not to pack: that copy is never read."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

        twins = [twin for _, twin in self._pairs if isinstance(twin, VocabParallelEmbedding)]
        plain = [twin for twin in twins if not isinstance(twin, ParallelLMHead)]
        if len(plain) == len(twins):
            return []
        for twin in plain:
            twin.quant_method = None
        return plain

    def _tie_heads(self) -> None:
        """Pack the heads that share the embedding's tensor."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        twin_of = {id(layer): twin for layer, twin in self._loaded}
        weights = {id(layer.weight): twin_of[id(layer)] for layer, _ in self._loaded if "weight" in layer._parameters}
        twin: Any
        for layer, twin in self._pairs:
            if isinstance(layer, ParallelLMHead) and id(layer) not in twin_of:
                source: Any = weights[id(layer.weight)]
                twin._parameters = {**twin._parameters, "weight": source.weight}
                twin.quant_method.process_weights_after_loading(twin)
                self._loaded.append((layer, twin))


def _noting(
    tensors: Iterable[tuple[str, torch.Tensor]], sent: list[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The same tensors; each is in `sent` from when it was asked for."""
    for pair in tensors:
        sent.append(pair)
        yield pair


def _holds_weights(twin: torch.nn.Module) -> bool:
    """Whether a layer has tensors of its own that were loaded: what was not is left on the meta device."""
    own = [p for p in twin._parameters.values() if p is not None]
    return bool(own) and not any(p.is_meta for p in own)


def _own(tensor: torch.Tensor, layer: torch.nn.Module, twin: torch.nn.Module) -> Any:
    """A copy of a tensor, with its attributes; loaders that were bound to `layer` are bound to `twin`."""
    from vllm.model_executor.model_loader.reload.sanitize import layer_ref_sentinel

    copy: Any = tensor.data if tensor.is_meta else tensor.data.clone()
    copy.__class__ = tensor.__class__
    copy.__dict__ = {key: _bound(value, (layer, layer_ref_sentinel), twin) for key, value in tensor.__dict__.items()}
    return copy


def _bound(value: Any, old: tuple[object, ...], twin: torch.nn.Module) -> Any:
    """An attribute of a tensor without vLLM's wrapper of the last reload, bound to the twin if it was to its layer."""
    while getattr(value, "__name__", "") == "online_process_loader":
        value = value.__wrapped__
    if isinstance(value, MethodType) and any(value.__self__ is each for each in old):
        return value.__func__.__get__(twin)
    return value
