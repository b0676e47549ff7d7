"""The policy as a Hugging Face model directory, its weights in files that any tool can hold in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from capo_ray.learners.files import write_bytes, write_json, write_tensors
from capo_ray.types import WrittenFile

SHARD_BYTES = 5_000_000_000
"""Most bytes of one weights file, as transformers writes them."""
# Beside weights and config, what an engine needs to serve an export.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What an export takes besides weights: transformers' configuration, and where the tokenizer's files lie."""

    config: Any
    path: str


def export_model(
    source: ModelSource, weights: dict[str, torch.Tensor], path: Path, shard_bytes: int = SHARD_BYTES
) -> tuple[WrittenFile, ...]:
    """The files of a model directory: safetensors (with an index where they are several), configuration, tokenizer."""
    written = _write_weights(path, weights, shard_bytes)
    with tempfile.TemporaryDirectory() as scratch:
        source.config.save_pretrained(scratch)
        sides = {file.name: file for file in Path(scratch).iterdir()}
        sides |= {name: found for name, found in _side_files(source.path) if found.is_file()}
        written += [write_bytes(path / name, [file.read_bytes()]) for name, file in sorted(sides.items())]
    return tuple(written)


def _write_weights(path: Path, weights: dict[str, torch.Tensor], shard_bytes: int) -> list[WrittenFile]:
    shards = list(_portions(weights, shard_bytes))
    metadata = {"format": "pt"}
    if len(shards) == 1:
        return [write_tensors(path / "model.safetensors", weights, metadata)]
    written: list[WrittenFile] = []
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        written.append(write_tensors(path / file, {name: weights[name] for name in names}, metadata))
        places |= dict.fromkeys(names, file)
    total = sum(t.numel() * t.element_size() for t in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return [*written, write_json(path / "model.safetensors.index.json", index)]


def _portions(weights: dict[str, torch.Tensor], shard_bytes: int) -> Iterator[list[str]]:
    """Names in the model's order, as many at a time as `shard_bytes` hold (a larger tensor stands alone)."""
    names: list[str] = []
    size = 0
    for name, tensor in weights.items():
        more = tensor.numel() * tensor.element_size()
        if names and size + more > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def _side_files(source: str) -> Iterator[tuple[str, Path]]:
    directory = Path(source)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        directory = Path(snapshot_download(source, allow_patterns=list(SIDE_FILES), local_files_only=True))
    for name in SIDE_FILES:
        yield name, directory / name
