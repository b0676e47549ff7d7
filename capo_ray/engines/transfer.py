"""vLLM's weight-transfer interface over host memory: a worker takes one payload, verified before, and loads it.

    start_weight_update -> update_weights(manifest, payload | path | tensors | received) -> finish_weight_update

In one process the payload, or what came in its place, is handed over as it is; across processes it is a private file in
shared memory, mapped by each worker, or each worker has received it itself (`weights.collective`). Importing this
module registers the backend, in the engine's process and in every worker's.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from capo_ray.weights import CollectiveReceiver, Contents, Meeting, Seat, WireLost, iterate_tensors

BACKEND = "shared_memory"


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One whole version: its manifest, and where it is: one of the others."""

    manifest: str
    payload: Any = None
    path: str | None = None
    tensors: Any = None
    """By their names."""
    received: int | None = None
    """The version that this worker holds ready."""


class SharedMemoryTransfer(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Loads checkpoint-format tensors from host memory, on any platform."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    _reception: Reception | None = None

    def begin_receiving(self, meeting: Meeting, contents: Contents) -> None:
        """Begin to take a version at a meeting, beside what this worker does."""
        seat = Seat(self.device.index) if self._reception is None else self._reception.seat
        self._reception = Reception(seat, meeting, contents)

    def received(self) -> tuple[str, list[tuple[tuple[int, int], int]], str] | None:
        """The places and checksums of what came, and why it did not come whole, if so; None while it is coming."""
        assert self._reception is not None
        return self._reception.told()

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Nothing to open."""

    def start_weight_update(self) -> None:
        """Undo the kernels' own weight layouts (prepacked Linear layers on the CPU) so that tensors fit again."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Bring the weights back into the kernels' layouts, in the storage that captured graphs know."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        require_all_layers(self.model, tied=bool(getattr(self.model_config.hf_config, "tie_word_embeddings", False)))
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._repack_heads()
            self._repack_experts()

    def _repack_heads(self) -> None:
        """Pack the embeddings and output heads again.

        The reload skips a layer that is sent no tensor of its own. An output head tied to the embedding is one: its
        weight is new, but the CPU's matrix product runs on a packed copy, made once. Logits would stay the old head's.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        for layer in self.model.modules():
            if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
                layer.quant_method.process_weights_after_loading(layer)

    def _repack_experts(self) -> None:
        """Pack the experts again: on an update vLLM leaves that step out, and the CPU's kernel reads packed ones."""
        for layer in self.model.modules():
            kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
            if kernel is not None:
                kernel.fused_experts.process_weights_after_loading(layer)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one version. The base class synchronises an accelerator, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Load every tensor; the engine has compared the payload with its manifest before it came here."""
        if update_info.received is not None:
            assert self._reception is not None
            load_tensors(self.model, iter(self._reception.give(update_info.received).items()))
            return
        if update_info.tensors is not None:
            load_tensors(self.model, iter(update_info.tensors.items()))
            return
        if update_info.path is None:
            load_tensors(self.model, iterate_tensors(update_info.manifest, update_info.payload))
            return
        with mapped(update_info.path) as payload:
            load_tensors(self.model, iterate_tensors(update_info.manifest, payload))

    def shutdown(self) -> None:
        """Nothing to close."""


def load_tensors(model: Any, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Hand every tensor to the model's own loaders."""
    model.load_weights(tensors)


def require_all_layers(model: Any, *, tied: bool) -> None:
    """Raise for a layer that was sent nothing: the reload would put its old weights back, with a log line at most.

    In bf16 one layer that is one update old lies within the noise of the canary.
    """
    from vllm.model_executor.layers.attention import is_deferred_attention_layer
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not info.can_load() or info.load_numel or not any(p is not None for p in layer._parameters.values()):
            continue
        if is_deferred_attention_layer(layer) or (tied and isinstance(layer, ParallelLMHead)):
            continue  # scales of a quantised cache; the embedding's own weight
        raise RuntimeError(f"the layer {name} was sent no weights: it still holds those of an older version")


class Reception:
    """One version on its way to one worker, made whole where it came as adapters, on a thread of its own."""

    def __init__(self, seat: Seat, meeting: Meeting, contents: Contents) -> None:
        self.seat, self._version, self._lost, self._contents = seat, meeting.version, "", contents
        self._whole: dict[str, torch.Tensor] = {}
        self._receiver = CollectiveReceiver(seat, meeting, keep=True)
        self._thread = threading.Thread(target=self._take, name="receives weights", daemon=True)
        self._thread.start()

    def told(self) -> tuple[str, list[tuple[tuple[int, int], int]], str] | None:
        """As `SharedMemoryTransfer.received`."""
        if self._thread.is_alive():
            return None
        return self._receiver.manifest.to_json(), list(self._receiver.found.items()), self._lost

    def give(self, version: int) -> dict[str, torch.Tensor]:
        """The tensors of a version, which are then no longer kept here."""
        if version != self._version or self._lost or self._thread.is_alive():
            raise RuntimeError(f"this worker does not hold version {version} whole")
        whole, self._whole = self._whole, {}
        return whole

    def _take(self) -> None:
        try:
            self._receiver.finish()
            self._whole = dict(self._contents.whole(self._receiver.kept.items()))
            self._receiver.kept = {}
        except (WireLost, ValueError) as error:  # by host memory it is told what is wrong with it
            self._lost = str(error)


class TransferExtension:
    """Mixed into vLLM's worker class; its import is what registers the backend in a worker process."""

    weight_transfer_engine: Any

    def begin_receiving(self, meeting: dict[str, Any], contents: Contents) -> None:
        """As `SharedMemoryTransfer.begin_receiving`."""
        self.weight_transfer_engine.begin_receiving(Meeting(**meeting), contents)

    def received(self) -> tuple[str, list[tuple[tuple[int, int], int]], str] | None:
        """As `SharedMemoryTransfer.received`."""
        told: tuple[str, list[tuple[tuple[int, int], int]], str] | None = self.weight_transfer_engine.received()
        return told


@contextmanager
def shared_file(payload: np.ndarray[Any, Any]) -> Iterator[str]:
    """The path of a file, readable by this user only, that holds `payload` until the block ends.

    It has no name in shared memory, so that nothing is left there where this process is killed before.
    """
    directory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        view = payload.data
        while len(view):  # one call writes at most 2 GiB
            view = view[file.write(view) :]
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"


@contextmanager
def mapped(path: str) -> Iterator[np.ndarray[Any, Any]]:
    """The bytes of a file as a read-only array that lives as long as the block."""
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Not closed here: tensors may still view it, and the last of them releases it.
    yield np.frombuffer(memory, dtype=np.uint8)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryTransfer)
