"""Model directories with their recipe: what `capo-ray sft` starts from and what it leaves.

A directory holds the Hugging Face files and `recipe.json`: the resolved config, versions, losses, the weights' sha256
and the evaluation, under `start` the recipe of the model that it was started from, if that had one. `first_losses` lets
anyone check that the config makes these weights.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from capo_ray.config.sft import SftModelConfig
from capo_ray.protocols import RunFailed
from capo_ray.written import RECIPE, require_written, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def model_from_scratch(sizes: SftModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A Qwen3 model with random float32 weights that depend on the seed alone."""
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_heads,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        tie_word_embeddings=True,
        initializer_range=sizes.init_std,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    torch.manual_seed(seed)
    return transformers.Qwen3ForCausalLM(config)


def load_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (float32) and tokenizer of a Hugging Face directory or hub name; RunFailed with a sentence otherwise."""
    require_written(path)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunFailed(f"expected a Hugging Face model directory or hub name, got {path!r}: {reason}") from error
    return model, tokenizer


def write_recipe(out: Path, recipe: Mapping[str, Any], start: str = "") -> None:
    """Write recipe.json of a model directory, completed with versions, the weights' sha256 and `start`'s own recipe."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    sums = {path.name: sha256(path) for path in sorted(out.glob("*.safetensors"))}
    earlier = {}
    if start and (Path(start) / RECIPE).is_file():
        earlier = {"start": json.loads((Path(start) / RECIPE).read_text())}
    text = json.dumps({**recipe, "versions": versions, "sha256": sums, **earlier}, indent=1)
    (out / RECIPE).write_text(text + "\n")
