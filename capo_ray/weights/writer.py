"""The sender's side: tensors into one flat buffer that is kept from version to version, and a seal that proves them.

    gather: portions of the model -> copied, in threads -> payload and places            engines begin on it at once
    seal:   portions of the model -> finite? (on their device), checksums -> manifest    with the canary's logprobs

Each byte is copied once, and its checksum is taken where it lies in the model, at the seal, never of the copy: a copy
that went wrong, a buffer that holds the last version, a gather that was stale or not whole do not pass the receiver's
check.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from capo_ray.protocols import RunFailed, WeightsHandle
from capo_ray.weights.canary import Canary
from capo_ray.weights.checksum import checksum, device_checksum
from capo_ray.weights.manifest import UNSEALED, Manifest, Onto, TensorEntry

ALIGNMENT = 64  # of Ray's object store, and more than any dtype needs

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


Seen = tuple[str, tuple[int, ...], int]
"""Of a tensor where it lies: dtype, shape and checksum."""


class Witness:
    """What the weights are where they lie in the model: finite, and of these checksums.

    `onto`: what they are added to, where they are adapters.
    """

    def __init__(self, num_threads: int = 1, onto: Onto | None = None) -> None:
        self.onto = onto
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="witness")
        self.begin(0)

    def begin(self, version: int) -> None:
        """Forget what was seen; from here on it is of `version`."""
        self._version = version
        self.seen: dict[str, Seen] = {}
        """By name."""

    def add(self, portion: Mapping[str, torch.Tensor]) -> None:
        """See some tensors; returns once their memory may be used again.

        Raises `RunFailed` on a non-finite weight: a diverged policy is never published.
        """
        require_finite(portion, self._version)
        for (name, tensor), found in zip(portion.items(), self._threads.map(_checksum, portion.values()), strict=True):
            self.seen[name] = _dtype(name, tensor), tuple(tensor.shape), found


class Places:
    """What a version holds and where it lies: one tensor after the other, each at a multiple of 64 bytes."""

    def __init__(self) -> None:
        self.entries: list[TensorEntry] = []
        self.used = 0
        """Bytes, up to where the next one goes."""

    def add(self, name: str, tensor: torch.Tensor) -> TensorEntry:
        """Where the next tensor goes."""
        offset, size = self.used, tensor.numel() * tensor.element_size()
        self.used += -(-size // ALIGNMENT) * ALIGNMENT
        self.entries.append(TensorEntry(name, _dtype(name, tensor), tuple(tensor.shape), offset, size, UNSEALED))
        return self.entries[-1]

    def manifest(self, version: int, canary: Canary | None, witness: Witness | None = None) -> Manifest:
        """The manifest of the version, sealed if a witness saw its weights.

        Raises `RunFailed` where other tensors were gathered than the model holds.
        """
        entries = self.entries if witness is None else self._sealed(version, witness)
        return Manifest(version, self.used, tuple(entries), canary, None if witness is None else witness.onto)

    def handle(
        self, version: int, payload: object, canary: Canary | None, witness: Witness | None = None
    ) -> WeightsHandle:
        """As `manifest`, with what leads to the bytes."""
        manifest = self.manifest(version, canary, witness)
        return WeightsHandle(version, manifest.to_json(), payload, manifest.fingerprint, self.used)

    def _sealed(self, version: int, witness: Witness) -> list[TensorEntry]:
        gathered = {entry.name: (entry.dtype, entry.shape) for entry in self.entries}
        held = {name: (dtype, shape) for name, (dtype, shape, _) in witness.seen.items()}
        if gathered != held or len(gathered) < len(self.entries):
            odd = sorted(name for name in gathered.keys() | held.keys() if gathered.get(name) != held.get(name))
            raise RunFailed(
                f"version {version} must be gathered as the model holds it (got {len(self.entries)} tensors, it holds "
                f"{len(held)}; other or missing: {odd[:3]}); resume from the last checkpoint"
            )
        return [replace(entry, checksum=witness.seen[entry.name][2]) for entry in self.entries]


class PayloadWriter:
    """`transport.Sender` into a buffer of its own, one version after the other; on `num_threads` threads.

    A handle's payload is a view of that buffer: valid until the next version is begun.
    """

    def __init__(self, num_threads: int = 1) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="payload")
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self.begin(0)

    def begin(self, version: int, num_bytes: int = 0) -> None:
        """As `Sender.begin`; what was written before is gone."""
        self._version, self._places = version, Places()
        self._expected_bytes = num_bytes

    def add(self, portion: Mapping[str, torch.Tensor]) -> None:
        """As `Sender.add`."""
        written = self._places.used
        entries = [self._places.add(name, tensor) for name, tensor in portion.items()]
        on_gpu = any(tensor.is_cuda for tensor in portion.values())
        self._make_room(written, on_gpu)
        if on_gpu:
            for entry, tensor in zip(entries, portion.values(), strict=True):
                self._copy(entry, tensor)
            torch.cuda.synchronize()
        else:
            list(self._threads.map(self._copy, entries, portion.values()))

    def gathered(self) -> WeightsHandle:
        """As `Sender.gathered`."""
        return self._places.handle(self._version, self._payload(), None)

    def seal(self, witness: Witness, canary: Canary | None) -> WeightsHandle:
        """As `Sender.seal`."""
        return self._places.handle(self._version, self._payload(), canary, witness)

    def release(self) -> None:
        """Give the buffer back: what is sent next goes another way."""
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def _payload(self) -> object:
        return self._buffer.numpy()[: self._places.used]

    def _copy(self, entry: TensorEntry, tensor: torch.Tensor) -> None:
        """Write one tensor; from a GPU the copy is only begun."""
        target, flat = self._buffer[entry.offset : entry.offset + entry.num_bytes], as_flat(tensor)
        if flat.is_cuda:
            target.copy_(flat, non_blocking=True)
        else:
            ctypes.memmove(target.data_ptr(), flat.data_ptr(), entry.num_bytes)  # a fifth faster than torch

    def _make_room(self, written: int, on_gpu: bool) -> None:
        """A buffer that holds what is placed; page-locked for a GPU, and otherwise not touched before it is written."""
        if self._places.used <= len(self._buffer):
            return
        old, wanted = self._buffer, max(self._places.used, self._expected_bytes)
        self._buffer = torch.empty(wanted, dtype=torch.uint8, pin_memory=on_gpu)
        kept = min(len(old), written)
        self._buffer[:kept] = old[:kept]


def build_handle(
    named_tensors: Mapping[str, torch.Tensor],
    version: int,
    canary: Canary | None,
    held: Mapping[str, torch.Tensor] | None = None,
    onto: Onto | None = None,
) -> WeightsHandle:
    """The handle of `named_tensors` (Hugging Face names), in a payload that is its own.

    `held`: what the model holds, where it is not what was gathered; `onto` as in `Manifest`.
    """
    writer, witness = PayloadWriter(), Witness(onto=onto)
    writer.begin(version)
    writer.add(named_tensors)
    witness.begin(version)
    witness.add(named_tensors if held is None else held)
    return writer.seal(witness, canary)


def require_finite(tensors: Mapping[str, torch.Tensor], version: int) -> None:
    """Raise `RunFailed` where a weight is NaN or infinite.

    A sum is not finite if any of its terms is not; reading once, it is 20 times as fast as `isfinite` on the CPU, and
    one answer comes back from a GPU, not one per tensor. A sum may also overflow: then each weight is looked at.
    """
    floats = {n: t for n, t in tensors.items() if t.is_floating_point() and t.element_size() > 1 and t.numel()}
    if not floats:
        return
    sums = torch.stack([tensor.detach().sum().double() for tensor in floats.values()])
    if bool(torch.isfinite(sums).all()):
        return
    for name, tensor in floats.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RunFailed(
                f"weights must be finite to be published (got NaN or infinity in tensor {name} of version {version}); "
                f"lower learner.lr and resume from the last checkpoint"
            )


def _checksum(tensor: torch.Tensor) -> int:
    """The checksum of a tensor's bytes."""
    flat = as_flat(tensor)
    return device_checksum(flat) if flat.is_cuda else checksum(flat.numpy())


def as_flat(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes, row-major."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _dtype(name: str, tensor: torch.Tensor) -> str:
    """The dtype's name; raises `ValueError` on one that no payload carries."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"tensor {name} has dtype {dtype}; expected one of {sorted(DTYPES)}")
    return dtype
