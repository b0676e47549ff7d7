"""A learner publishes under the names of the model's own files, whatever transformers makes of them in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.tiny import write_tiny_model
from capo_ray.learners.file_names import FileNames, Files, require_files_weights
from capo_ray.learners.policy import load_policy
from capo_ray.protocols import RunFailed
from capo_ray.weights import checkpoint_shapes

SIZES = {
    "vocab_size": 98,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}


def write_moe(path: Path, kind: str) -> None:
    """A random mixture of four experts."""
    from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    if kind == "qwen3_moe":
        config = Qwen3MoeConfig(**SIZES, intermediate_size=128, moe_intermediate_size=32, num_experts=4)
        Qwen3MoeForCausalLM(config).save_pretrained(path)
    else:
        MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=128, num_local_experts=4)).save_pretrained(path)


def portions(path: Path) -> list[dict[str, torch.Tensor]]:
    """The policy's weights as the learner visits them, one parameter a portion."""
    policy = load_policy(str(path), "float32")
    names = FileNames(policy.model)
    return [names.to_files({name: parameter.detach()}) for name, parameter in policy.named_parameters()]


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_fused_experts_are_published_as_the_files_name_them(tmp_path: Path, kind: str) -> None:
    write_moe(tmp_path, kind)
    found = portions(tmp_path)
    shapes = {name: tuple(t.shape) for portion in found for name, t in portion.items()}
    assert shapes == checkpoint_shapes(str(tmp_path))
    assert len(shapes) > 24, "4 experts x 3 matrices x 2 layers, and what is not an expert's"
    for portion in found:
        require_files_weights(portion, Files(str(tmp_path)), "here")


def test_two_tensors_that_stand_under_each_others_names_are_seen_at_the_start(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    files = Files(str(tmp_path))
    whole = {name: tensor for portion in portions(tmp_path) for name, tensor in portion.items()}
    require_files_weights(whole, files, "here")
    one, other = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    with pytest.raises(RunFailed, match=r"layers\.0\.mlp.up_proj\.weight in memory must be the one in the files"):
        require_files_weights({one: whole[other], other: whole[one]}, files, "here")
    with pytest.raises(RunFailed, match=r"would publish model\.novel"):
        require_files_weights({"model.novel": whole[one]}, files, "here")
