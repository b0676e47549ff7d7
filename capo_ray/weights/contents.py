"""What a version holds, and the whole weights that an engine's loaders are given of it: the model, or adapters alone.

    WholeModel     tensors as they came
    AdaptersAlone  A [r, i], B [o, r] of each layer, and W [o, i] of the engine's own files --> W + alpha / r * B A

Adapters are merged by the engine, and not by vLLM's own LoRA: what is loaded is then a model like any other, whose
decoding costs nothing more (vLLM adds two matrix products to each adapted layer of every step, and takes a fixed list
of ranks), for every layer, packing, sharding and dtype that the loaders know; keys and values of older adapters, the
swap and the canary are what they are for a whole version. It is merged while the engine serves. The price is that it
reads its files at each version. They are mapped, not kept: on a node all engines share the pages.

Invariants: sums are made in fp32 and rounded once, as the learner's own (`learners.adapters`); the base is what the
learner holds, bit by bit, or the version is refused. r rank, i inputs, o outputs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from capo_ray.config.lora import LoraConfig
from capo_ray.weights.canary import WeightsRefused
from capo_ray.weights.checkpoint import checkpoint_files, checkpoint_shapes
from capo_ray.weights.checksum import checksum
from capo_ray.weights.manifest import Manifest, read_manifest
from capo_ray.weights.payload import iterate_tensors
from capo_ray.weights.writer import DTYPES, PayloadWriter, Seen, as_flat

TIED = "lm_head.weight"
_SIDES = ("lora_A", "lora_B")
_IN_BLOCKS = re.compile(r"\.\d+\..*?([^.]+)\.weight$")
Tensors = Iterable[tuple[str, torch.Tensor]]
Shapes = Mapping[str, tuple[int, ...]]


class Contents(Protocol):
    """One engine's view of the versions that it takes; small, for it travels to the engine's workers."""

    def require(self, manifest: Manifest) -> None:
        """Raises `WeightsRefused` unless the manifest names all that a version holds, and nothing else."""

    def loads(self, manifest: Manifest) -> frozenset[tuple[str, tuple[int, ...]]]:
        """Name and shape of all that `whole` gives of such a version."""

    def whole(self, tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        """The model's tensors, of a version's; raises `ValueError` where it is not what `require` lets pass."""

    def payload(self, manifest: str, payload: object) -> tuple[str, object]:
        """As `whole`, from payload to payload, each with the manifest that tells its places; not sealed."""


@dataclass(frozen=True, slots=True)
class WholeModel:
    """Every tensor of the model's files; a head that shares the embedding's may be left out."""

    shapes: Shapes
    dtype: str
    tied: bool

    def require(self, manifest: Manifest) -> None:
        """As `Contents.require`."""
        if manifest.onto is not None:
            raise WeightsRefused(
                f"version {manifest.version} holds adapters alone, expected the whole model: the engine was started "
                f"without weights.adapters=alone"
            )
        optional = {TIED} if self.tied else set()
        _require_tensors(manifest, self.shapes, optional, self.dtype, "this model's tensors")

    def loads(self, manifest: Manifest) -> frozenset[tuple[str, tuple[int, ...]]]:
        """As `Contents.loads`."""
        return frozenset((entry.name, entry.shape) for entry in manifest.tensors)

    def whole(self, tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        """As `Contents.whole`."""
        return iter(tensors)

    def payload(self, manifest: str, payload: object) -> tuple[str, object]:
        """As `Contents.payload`."""
        return manifest, payload


@dataclass(frozen=True, slots=True)
class AdaptersAlone:
    """The adapters of a learner with `lora` on the model of the files at `path`, which the engine began with."""

    path: str
    shapes: Shapes
    dtype: str
    tied: bool
    lora: LoraConfig

    @property
    def base(self) -> list[str]:
        """The tensors of the files that make the model, in their order."""
        return [name for name in self.shapes if not (self.tied and name == TIED)]

    def require(self, manifest: Manifest) -> None:
        """As `Contents.require`: pairs, of all layers of a kind, and what they are added to, by how much."""
        onto, version = manifest.onto, manifest.version
        if onto is None:
            raise WeightsRefused(f"version {version} holds no adapters, expected them alone (weights.adapters=alone)")
        kinds = {found[1] for name in _layers(manifest) if (found := _IN_BLOCKS.search(f"{name}.weight"))}
        expected = adapter_shapes(self.shapes, self.lora, kinds)
        _require_tensors(manifest, expected, set(), self.dtype, "a pair A, B for each of this model's layers")
        scale = self.lora.alpha / self.lora.rank
        if onto.scale != scale:
            raise WeightsRefused(f"version {version}: expected adapters of scale {scale:g}, got {onto.scale:g}")
        ours = base_of(self.path, self.dtype, tuple(self.base))
        if onto.base != ours:
            raise WeightsRefused(
                f"version {version}: its adapters were trained on other weights than the files of {self.path} hold "
                f"here (got {onto.base[:12]}, expected {ours[:12]}); every node must see the model that the run began "
                f"with"
            )

    def loads(self, manifest: Manifest) -> frozenset[tuple[str, tuple[int, ...]]]:
        """As `Contents.loads`."""
        return frozenset((name, self.shapes[name]) for name in self.base)

    def whole(self, tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
        """As `Contents.whole`; the files are opened anew, and one matrix at a time is summed."""
        given = dict(tensors)
        files, dtype = MappedFiles(self.path), DTYPES[self.dtype]
        scale = self.lora.alpha / self.lora.rank
        for name in self.base:
            stored = files.tensor(name)
            if stored is None:
                raise ValueError(f"the files of {self.path} hold no {name} any more")
            weight = stored.to(dtype)
            sides = [given.pop(side, None) for side in pair_names(name.removesuffix(".weight"))]
            first, second = sides
            yield name, weight if first is None or second is None else merged(weight, first, second, scale)
        if given:
            raise ValueError(f"no layer of {self.path} takes {next(iter(given))}")

    def payload(self, manifest: str, payload: object) -> tuple[str, object]:
        """As `Contents.payload`."""
        came, writer = read_manifest(manifest), PayloadWriter()
        writer.begin(came.version, sum(math.prod(shape) for _, shape in self.loads(came)) * DTYPES[self.dtype].itemsize)
        for name, tensor in self.whole(iterate_tensors(came, payload)):
            writer.add({name: tensor})
        made = writer.gathered()
        return made.manifest, made.payload


def merged(weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor, scale: float) -> torch.Tensor:
    """W + scale * B A [o, i] in the dtype of W; `first` A [r, i], `second` B [o, r]."""
    return weight.float().addmm(second.float(), first.float(), alpha=scale).to(weight.dtype)


def pair_names(layer: str) -> tuple[str, str]:
    """Under which A and B of a layer are sent."""
    first, second = (f"{layer}.{side}.weight" for side in _SIDES)
    return first, second


def adapter_shapes(shapes: Shapes, lora: LoraConfig, kinds: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
    """Name and shape of every A and B, from those of the model's tensors; `kinds`: what `lora` targets if it does not
    say. With neither: of all matrices of the blocks but experts, a router's among them, which has no adapter.
    """
    wanted = set(lora.targets or kinds)
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        kind = _IN_BLOCKS.search(name)
        if kind is None or len(shape) != 2 or ".experts." in name or (wanted and kind[1] not in wanted):
            continue
        first, second = pair_names(name.removesuffix(".weight"))
        found |= {first: (lora.rank, shape[1]), second: (shape[0], lora.rank)}
    return found


def base_fingerprint(seen: Mapping[str, Seen]) -> str:
    """The hex SHA-256 of weights by name: dtype, shape and checksum of each."""
    text = json.dumps([[name, dtype, list(shape), found] for name, (dtype, shape, found) in sorted(seen.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def base_of(path: str, dtype: str, names: tuple[str, ...]) -> str:
    """The fingerprint of the tensors `names` of the model's files, in `dtype`; read once, and when a file changes."""
    stats = [os.stat(file) for file in sorted(set(checkpoint_files(path).values()))]
    return _base_of(path, dtype, names, tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in stats))


@lru_cache(maxsize=2)
def _base_of(path: str, dtype: str, names: tuple[str, ...], _: tuple[tuple[int, int, int], ...]) -> str:
    files, seen = MappedFiles(path), dict[str, Seen]()
    for name in names:
        stored = files.tensor(name)
        assert stored is not None, name
        tensor = stored.to(DTYPES[dtype])
        seen[name] = dtype, tuple(tensor.shape), checksum(as_flat(tensor).numpy())
    return base_fingerprint(seen)


def adapter_bytes(model_path: str, dtype: str, lora: LoraConfig) -> int | None:
    """The bytes of a version of adapters alone, at most; None where the model's files are not here."""
    try:
        shapes = checkpoint_shapes(model_path)
    except (OSError, ValueError):
        return None
    numels = (rows * columns for rows, columns in adapter_shapes(shapes, lora).values())
    return sum(numels) * DTYPES[dtype].itemsize


class MappedFiles:
    """The tensors of a model's safetensors files, mapped, one at a time."""

    def __init__(self, path: str) -> None:
        self._open: dict[Path, Any] = {}
        self._file_of = checkpoint_files(path)

    def tensor(self, name: str) -> torch.Tensor | None:
        """One tensor as it is stored; None where no file holds it."""
        from safetensors import safe_open

        if name not in self._file_of:
            return None
        file = self._file_of[name]
        if file not in self._open:
            self._open[file] = safe_open(str(file), framework="pt")
        tensor: torch.Tensor = self._open[file].get_tensor(name)
        return tensor


def _layers(manifest: Manifest) -> set[str]:
    """The layers that the manifest holds a part of."""
    return {entry.name.rsplit(".", 2)[0] for entry in manifest.tensors}


def _require_tensors(manifest: Manifest, shapes: Shapes, optional: set[str], dtype: str, what: str) -> None:
    """Raises `WeightsRefused` unless a version holds tensors of these names, shapes and dtype."""
    got = {entry.name: entry for entry in manifest.tensors}
    missing = sorted(set(shapes) - set(got) - optional)
    extra = sorted(set(got) - set(shapes) - optional)
    if missing or extra or not got:
        raise WeightsRefused(
            f"version {manifest.version} does not hold {what}: missing {missing[:5] or 'none'}, "
            f"unknown {extra[:5] or 'none'} ({len(missing)} and {len(extra)})"
        )
    for name, entry in got.items():
        if name in shapes and entry.shape != shapes[name]:
            raise WeightsRefused(f"tensor {name}: expected shape {list(shapes[name])}, got {list(entry.shape)}")
        if entry.dtype != dtype:
            raise WeightsRefused(
                f"tensor {name}: the engine holds {dtype}, got {entry.dtype}; publish in the engine's dtype"
            )
