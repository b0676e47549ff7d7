"""Model directories made of a few bytes, for checks that read files alone."""

from __future__ import annotations

import json
from pathlib import Path


def write_model(folder: Path, *, vocab: int = 6, tokens: int = 6, positions: int = 4096) -> Path:
    """A directory that looks like a Hugging Face model of 12 parameters with a tokenizer of `tokens` ids."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "qwen3",
        "hidden_size": 2,
        "num_hidden_layers": 1,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"embed.weight": {"dtype": "F32", "shape": [6, 2], "data_offsets": [0, 48]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(48))
    tokenizer = {"model": {"vocab": {f"t{i}": i for i in range(tokens)}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
