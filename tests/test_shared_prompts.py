"""A prompt computed once for all its responses gives the logprobs and gradients of each response by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capo_ray.learners.attention import NAME
from capo_ray.learners.microbatch import Inputs, padded_inputs, shared_inputs, to_inputs
from capo_ray.learners.policy import Policy, load_policy, require_plain_head
from capo_ray.learners.scalar import load_scalar_model
from capo_ray.learners.trunk import share_prompts
from capo_ray.protocols import RunFailed
from tests.examples import examples

CPU, VOCAB = torch.device("cpu"), 50
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.4,
    "max_position_embeddings": 512,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "mistral, window": {"sliding_window": 5},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
Group = tuple[int, Sequence[int]]  # tokens of the prompt, of each response


def build(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    config = AutoConfig.for_model(kind.split(",")[0], **(SIZES | MODELS.get(kind, {}) | changes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.train()


def to_rows(groups: Sequence[Group], seed: int = 0) -> tuple[list[list[int]], list[int]]:
    """Sequences and where their responses start; siblings of several groups take turns."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(VOCAB, (n,), generator=generator).tolist()

    made = [(prompt, [prompt + draw(n) for n in lengths]) for p, lengths in groups for prompt in [draw(p)]]
    longest = max(len(rows) for _, rows in made)
    order = [(rows[i], len(prompt)) for i in range(longest) for prompt, rows in made if i < len(rows)]
    return [row for row, _ in order], [start for _, start in order]


def to_shared_inputs(rows: Sequence[Sequence[int]], starts: Sequence[int], device: torch.device) -> Inputs:
    return shared_inputs(rows, [((start, len(row)),) for row, start in zip(rows, starts, strict=True)], device)


def run(model: Any, inputs: Inputs, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """(logprobs, entropies, gradient of all weights) of a random loss of both."""
    model.zero_grad()
    logprobs, entropies = Policy(model)(inputs, 0.8)
    mix = torch.randn(2, len(logprobs), generator=torch.Generator().manual_seed(seed))
    (mix[0] * logprobs + 0.1 * mix[1] * entropies).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logprobs.detach(), entropies.detach(), gradient


def assert_same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert float((a - b).norm()) < 1e-5 * float(b.norm())


groups_of_any_shape = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=5)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """The same weights twice, with attention over padded rows and over segments."""
    padded, shared = build("qwen3"), build("qwen3")
    share_prompts(shared, "qwen3")
    return padded, shared


@pytest.mark.slow
@settings(max_examples=examples(40), deadline=None)
@given(groups_of_any_shape, st.integers(0, 99), st.booleans())
def test_groups_of_any_shape_have_the_logprobs_and_gradients_of_padded_rows(
    pair: tuple[Any, Any], groups: list[Group], seed: int, checkpointing: bool
) -> None:
    rows, starts = to_rows(groups, seed)
    rows, starts = rows + rows[:2], starts + starts[:2]  # two siblings that wrote what others did
    padded, shared = pair
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    shared.gradient_checkpointing_enable(**options) if checkpointing else shared.gradient_checkpointing_disable()
    inputs = to_shared_inputs(rows, starts, CPU)
    assert_same(run(shared, inputs, seed), run(padded, to_inputs(rows, starts, CPU), seed))
    siblings = {tuple(row[:start]): start for row, start in zip(rows, starts, strict=True) if start > 1}
    texts = {tuple(row): len(row) - start for row, start in zip(rows, starts, strict=True) if start > 1}
    alone = sum(len(row) for row, start in zip(rows, starts, strict=True) if start == 1)
    once = sum(siblings.values()) + sum(texts.values()) + alone
    assert inputs.input_ids.shape == (1, once), "no padding, and every prompt and text once"


@pytest.mark.parametrize("kind", MODELS)
def test_models_as_transformers_has_them_give_the_same_with_prompts_shared(kind: str) -> None:
    padded, shared = build(kind), build(kind)
    share_prompts(shared, kind)
    assert shared.config._attn_implementation == NAME
    rows, starts = to_rows([(7, [9, 1, 4]), (3, [6]), (12, [2, 8])])
    ours = run(shared, to_shared_inputs(rows, starts, CPU))
    theirs = run(padded, to_inputs(rows, starts, CPU))
    assert_same(ours, theirs)
    assert_same(run(shared, to_inputs(rows, starts, CPU)), theirs)  # padded rows are taken as well


def test_a_cpus_kernel_is_called_once_for_all_segments_of_about_one_length() -> None:
    rows, starts = to_rows([(10, [17, 20, 24, 22]), (10, [18, 23, 19]), (10, [70])])
    segments = to_shared_inputs(rows, starts, CPU).segments
    assert segments is not None
    found = sorted((call.causal, call.num, len(call.rows)) for call in segments.padded)
    prompts, siblings, long = (True, 2, 20), (True, 7, 143), (True, 1, 80)  # the last has no sibling: prompt and all
    assert found == [(False, 1, 60), (False, 1, 83), long, prompts, siblings]


def test_the_first_token_of_a_response_brings_its_gradient_to_the_prompt() -> None:
    model = build("qwen2")
    share_prompts(model, "qwen2")
    inputs = to_shared_inputs([[5, 6, 7, 8], [5, 6, 9, 8]], [2, 2], CPU)
    assert inputs.input_ids.tolist() == [[5, 6, 7, 8, 9, 8]]
    assert inputs.predictors.tolist() == [1, 2, 1, 4] and inputs.places.tolist() == [2, 3, 4, 5]
    assert inputs.segments is not None and inputs.segments.position_ids.tolist() == [[0, 1, 2, 3, 2, 3]]
    logprobs = Policy(model)(inputs, 1.0)[0]
    table = model(input_ids=torch.tensor([[5, 6]])).logits[0, 1].log_softmax(-1)
    assert logprobs[[0, 2]].tolist() == pytest.approx(table[[7, 9]].tolist(), abs=1e-5)
    (gradient,) = torch.autograd.grad(logprobs[0] + logprobs[2], model.get_input_embeddings().weight)
    (expected,) = torch.autograd.grad(table[7] + table[9], model.get_input_embeddings().weight)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_what_a_policy_read_between_its_turns_is_context_for_all_of_its_turns(pair: tuple[Any, Any]) -> None:
    padded, shared = pair
    rows, _ = to_rows([(5, [9, 7, 9])])
    spans = [((5, 8), (10, 13)), ((5, 12),), ((5, 6), (7, 9), (11, 14))]
    assert_same(run(shared, shared_inputs(rows, spans, CPU)), run(padded, padded_inputs(rows, spans, CPU)))


def test_a_model_whose_layers_mix_tokens_otherwise_is_refused_by_name() -> None:
    with pytest.raises(RunFailed, match=r"softcap; set learner\.packing=padded"):
        share_prompts(build("gemma2", head_dim=8), "some/gemma")
    chunked = build("llama")
    chunked.config.attention_chunk_size = 8
    with pytest.raises(RunFailed, match=r"has attention_chunk_size; set learner\.packing=padded"):
        share_prompts(chunked, "some/llama")


class ByShape(nn.Module):
    """A head that rounds as kernels of bfloat16 do: otherwise where the product has another shape."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        product = self.head(hidden)
        return product if hidden.dim() == 3 else product * (1 + 2**-7)


def test_a_head_of_bfloat16_that_rounds_by_shape_is_plain_and_one_that_caps_is_not() -> None:
    model = build("llama").to(torch.bfloat16)
    model.set_output_embeddings(ByShape(model.get_output_embeddings()))
    require_plain_head(model, "some/llama")
    capped = build("gemma2", head_dim=8, final_logit_softcapping=30.0).to(torch.bfloat16)
    with pytest.raises(RunFailed, match="scales or caps them"):
        require_plain_head(capped, "some/gemma")


class Changed(nn.Module):
    """A layer whose numbers are changed."""

    def __init__(self, layer: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer, self.change = layer, change

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.change(self.layer(hidden))


def test_a_model_in_bfloat16_that_rounds_by_length_takes_segments_and_one_that_mixes_tokens_does_not() -> None:
    """As SmolLM2 after some training: a fifth of a hidden state is rounding, in bf16 alone."""
    model, mixing = build("llama").to(torch.bfloat16), build("llama").to(torch.bfloat16)
    first, other = model.model.layers[0], mixing.model.layers[0]
    first.mlp = Changed(first.mlp, lambda y: 2 * y if y.dtype == torch.bfloat16 and y.shape[1] > 3 else y)
    places = [param.data_ptr() for param in model.parameters()]
    share_prompts(model, "some/llama")
    assert model.config._attn_implementation == NAME
    assert [param.data_ptr() for param in model.parameters()] == places, "no weight is copied for good"
    other.mlp = Changed(other.mlp, lambda y: y.cumsum(1))
    with pytest.raises(RunFailed, match=r"gives other numbers .*; set learner\.packing=padded"):
        share_prompts(mixing, "some/llama")


@pytest.mark.parametrize("at_token", [True, False])
def test_a_reward_models_numbers_are_those_of_padded_rows(tmp_path: Path, at_token: bool) -> None:
    build("qwen2").save_pretrained(tmp_path)
    rows, starts = to_rows([(4, [3, 5]), (1, [2])])
    told = [
        load_scalar_model(str(tmp_path), "float32", at_token=at_token, seed=0, shared=shared)(inputs, 1.0)[0].tolist()
        for shared, inputs in ((False, to_inputs(rows, starts, CPU)), (True, to_shared_inputs(rows, starts, CPU)))
    ]
    assert told[1] == pytest.approx(told[0], abs=1e-6)
    shared_policy = load_policy(str(tmp_path), "bfloat16", shared=True)
    assert shared_policy(to_shared_inputs(rows, starts, CPU), 1.0)[0].dtype == torch.float32
