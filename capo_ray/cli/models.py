"""What a model directory says about itself, read from its files alone: parameters, shape, tokenizer.

Invariant: no model library is imported and no code of the directory is run; safetensors headers and JSON suffice.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from capo_ray.problems import asset_path
from capo_ray.protocols import RunFailed
from capo_ray.sizing import Shape, known_shape, shape_of

Role = Literal["policy", "critic"]
ADAPTER_FILE = "adapter_model.safetensors"
OTHER_HEADS = ("ForMaskedLM", "Classification", "ForQuestionAnswering", "Encoder", "EncoderModel")
_HEADER_LIMIT = 100 << 20  # of a safetensors file, by its own format


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's size and shape; `num_params` counts stored tensors once, `shape` is None of other than dense ones."""

    num_params: int
    vocab: int
    max_token_id: int | None
    max_positions: int | None
    shape: Shape | None


def find_model(name: str, role: Role) -> Path | None:
    """The local directory behind a model's name: shipped, given or in the hub cache; None where there is none."""
    path = asset_path(name, role)
    return path if path.is_dir() else _in_hub_cache(name)


def size_of(name: str, role: Role, key: str) -> tuple[int, Shape | None]:
    """Parameters and shape of a model by what is here: weights, else config.json, else the table; 0 if nothing is."""
    folder = find_model(name, role)
    if folder is None or not (folder / "config.json").is_file():
        shape = known_shape(name)
        return (shape.num_params, shape) if shape is not None else (0, None)
    _require_plain_files(folder, key)
    shape = shape_of(_read_json(folder / "config.json", key))
    stored = sum(_count_params(path, key) for path in folder.glob("*.safetensors"))
    return stored or (shape.num_params if shape is not None else 0), shape


def head_dim_of(name: str, role: Role, key: str) -> int | None:
    """The size of an attention head, where the model is here and its config.json says it."""
    folder = find_model(name, role)
    if folder is None or not (folder / "config.json").is_file():
        return None
    config = _read_json(folder / "config.json", key)
    size, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return config.get("head_dim") or (size // heads if size and heads else None)


def is_fetched(name: str, folder: Path) -> bool:
    """Whether a model's directory is whole or the user's own; of a hub name the cache may hold some files only."""
    return any(folder.glob("*.safetensors")) or folder != _in_hub_cache(name)


def read_config(folder: Path, key: str) -> dict[str, Any]:
    """The `config.json` of a model's directory."""
    return _read_json(folder / "config.json", key)


def read_facts(folder: Path, key: str) -> ModelFacts:
    """The facts of a Hugging Face directory; raises `RunFailed` naming `key` where it does not look like one."""
    _require_plain_files(folder, key)
    config = _read_json(folder / "config.json", key)
    nested = config.get("text_config")  # of models with more than text
    text: dict[str, Any] = nested if isinstance(nested, dict) else config
    shape = {name: text.get(name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    missing = [name for name, value in shape.items() if not isinstance(value, int)]
    if missing:
        raise RunFailed(
            f"{key}: expected {', '.join(missing)} in {folder / 'config.json'}; give a causal language model"
        )
    _require_causal(config, folder, key)
    weights = _weight_files(folder, key)
    if not weights:
        raise RunFailed(
            f"{key}: expected *.safetensors in {folder}, found none; save the model with safe_serialization"
        )
    return ModelFacts(
        num_params=sum(_count_params(path, key) for path in weights),
        vocab=text["vocab_size"],
        max_token_id=_max_token_id(folder, key),
        max_positions=text.get("max_position_embeddings"),
        shape=shape_of(config),
    )


def _require_causal(config: dict[str, Any], folder: Path, key: str) -> None:
    """Raise for a model that does not go on with a text: an encoder-decoder, or one with another head."""
    kinds = [str(name) for name in config.get("architectures") or []]
    other = kinds and all(name.endswith(OTHER_HEADS) for name in kinds)
    if config.get("is_encoder_decoder") or other:
        what = "an encoder-decoder" if config.get("is_encoder_decoder") else ", ".join(kinds)
        raise RunFailed(f"{key}: expected a causal language model in {folder}, got {what}; give another model")


def _weight_files(folder: Path, key: str) -> list[Path]:
    """The files of the model's weights; raises where its index names one that is missing, or where it is an adapter."""
    index = folder / "model.safetensors.index.json"
    found = sorted(path for path in folder.glob("*.safetensors") if path.name != ADAPTER_FILE)
    if index.is_file():
        named = set(_read_json(index, key).get("weight_map", {}).values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise RunFailed(
                f"{key}: {index} names {len(named)} files, of which {', '.join(missing[:3])} "
                f"{'is' if len(missing) == 1 else 'are'} missing; fetch the model again"
            )
    elif not found and (folder / ADAPTER_FILE).is_file():
        raise RunFailed(
            f"{key}: {folder} holds an adapter ({ADAPTER_FILE}) without its model; merge the two and save the whole"
        )
    return found


def _require_plain_files(folder: Path, key: str) -> None:
    """Raise for a pipe, socket or device among a model's files: whoever opens one waits for ever."""
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise RunFailed(f"{key}: expected plain files in {folder}, but {path.name} is none; remove it")


def _read_json(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise RunFailed(
            f"{key}: expected a Hugging Face model directory, but {path} is missing; give one, or a hub name"
        )
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFailed(f"{key}: expected JSON in {path}, got {error}; fetch the model again") from error
    if not isinstance(tree, dict):
        raise RunFailed(f"{key}: expected a JSON object in {path}, got {type(tree).__name__}; fetch the model again")
    return tree


def read_matrices(folder: Path, key: str) -> list[str]:
    """The names of all modules with a matrix, from the headers of the model's files."""
    entries = (entry for path in _weight_files(folder, key) for entry in _header(path, key).items())
    names = (name for name, entry in entries if name != "__metadata__" and len(entry["shape"]) == 2)
    return [name.removesuffix(".weight") for name in names if name.endswith(".weight")]


def _count_params(path: Path, key: str) -> int:
    """The number of elements of all tensors of a safetensors file, from its header."""
    return sum(math.prod(entry["shape"]) for name, entry in _header(path, key).items() if name != "__metadata__")


def _header(path: Path, key: str) -> dict[str, Any]:
    """The header of a safetensors file that is whole."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(_HEADER_LIMIT, path.stat().st_size):
            raise RunFailed(f"{key}: {path} is no safetensors file (cut short, or a git-lfs pointer); fetch it again")
        try:
            header: dict[str, Any] = json.loads(file.read(size))
        except ValueError as error:
            raise RunFailed(f"{key}: {path} is no safetensors file ({error}); fetch it again") from error
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if 8 + size + end > path.stat().st_size:
        raise RunFailed(f"{key}: {path} is cut short ({path.stat().st_size} of {8 + size + end} bytes); fetch it again")
    return header


def _max_token_id(folder: Path, key: str) -> int | None:
    """The largest id of tokenizer.json; None where the directory has another kind of tokenizer."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        if any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")):
            return None
        raise RunFailed(
            f"{key}: expected a tokenizer (tokenizer.json) in {folder}, found none; copy it beside the model"
        )
    tree = _read_json(path, key)
    vocab = tree.get("model", {}).get("vocab", {})
    ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
    ids += [token["id"] for token in tree.get("added_tokens", [])]
    return max(ids, default=None)


def _in_hub_cache(name: str) -> Path | None:
    """The newest snapshot of a hub name in the local cache, or None."""
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    snapshots = [
        path for path in (cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*") if path.is_dir()
    ]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
