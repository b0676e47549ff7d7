"""Bytes by formula against bytes counted on the meta device, and against what is published of well-known models."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from capo_ray.config.lora import LoraConfig
from capo_ray.learners.adapters import Adapters
from capo_ray.learners.rank import grow_segments
from capo_ray.sizing import (
    AdapterLoad,
    EngineLoad,
    LearnerLoad,
    Shape,
    engine_terms,
    known_shape,
    kv_bytes_per_token,
    learner_terms,
    offloaded_terms,
    pack,
    shape_of,
    total,
)
from capo_ray.sizing import learner as sizing_learner
from capo_ray.sizing.engine import BATCHED_TOKENS
from tests.meta_bytes import build_policy, count_pass, count_weights

QWEN: dict[str, Any] = {"model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-6}
LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}


def widths(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
    }


# config.json as published, and the number of parameters that the hub counts in the files.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen/Qwen2.5-1.5B": (QWEN | TIED | widths(1536, 8960, 28, 12, 2, 151936), 1_543_714_304),
    "Qwen/Qwen2.5-7B": (QWEN | UNTIED | widths(3584, 18944, 28, 28, 4, 152064), 7_615_616_512),
    "Qwen/Qwen2.5-32B": (QWEN | UNTIED | widths(5120, 27648, 64, 40, 8, 152064), 32_763_876_352),
    "meta-llama/Llama-3.2-1B": (LLAMA | TIED | {"head_dim": 64} | widths(2048, 8192, 16, 32, 8, 128256), 1_235_814_400),
    "meta-llama/Llama-3.2-3B": (
        LLAMA | TIED | {"head_dim": 128} | widths(3072, 8192, 28, 24, 8, 128256),
        3_212_749_824,
    ),
    "Qwen/Qwen3-0.6B": (
        QWEN | TIED | {"model_type": "qwen3", "head_dim": 128} | widths(1024, 3072, 28, 16, 8, 151936),
        596_049_920,
    ),
}
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen2.5-Coder-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "meta-llama/Meta-Llama-3-70B-Instruct": 70_553_706_496,
} | {name: published for name, (_, published) in MODELS.items()}


def load_of(config: dict[str, Any], tokens: int, *, checkpointing: bool, unit: int = 2, **changes: Any) -> LearnerLoad:
    shape = shape_of(config)
    assert shape is not None
    settings: dict[str, Any] = {
        "shape": shape,
        "num_params": shape.num_params,
        "unit": unit,
        "zero_stage": 0,
        "num_ranks": 1,
        "tokens": tokens,
        "checkpointing": checkpointing,
        "reference": False,
        "on_gpu": True,
    }
    return LearnerLoad(**settings | changes)


def term(load: LearnerLoad, name: str) -> float:
    return next(t.num_bytes for t in learner_terms(load) if t.name == name)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_well_known_name_has_the_parameters_that_its_files_hold(name: str) -> None:
    shape = known_shape(name)
    assert shape is not None and shape.num_params == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_config_has_the_parameters_of_the_module_built_from_it(name: str) -> None:
    config, published = MODELS[name]
    load = load_of(config, 1, checkpointing=False)
    assert load.num_params == published
    counted = count_weights(build_policy(config, torch.bfloat16, checkpointing=False))
    assert counted == 2 * published == term(load, "weights")


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "layers"), [(False, 4), (True, 8)])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_pass_over_responses_takes_the_bytes_that_are_counted(name: str, checkpointing: bool, layers: int) -> None:
    """Few layers, held the closer for it: the formula is a layer's bytes by their number, and the head's."""
    config = MODELS[name][0] | {"num_hidden_layers": layers}
    counted = count_pass(build_policy(config, torch.bfloat16, checkpointing=checkpointing), 8192, 8192)
    load = load_of(config, 8192, checkpointing=checkpointing)
    terms = {t.name: t.num_bytes for t in learner_terms(load)}
    angles = 8192 * 2 * 2 * load.shape.head_dim  # their cosines and sines, and 20 B more a token
    assert terms["activations"] + 8192 * 2 * config["hidden_size"] + angles == pytest.approx(counted.kept, rel=0.003)
    if "head" in terms:
        assert terms["activations"] + terms["head"] + angles == pytest.approx(counted.peak, rel=0.003)
    else:
        assert terms["activations"] + terms["one layer"] == pytest.approx(counted.peak, rel=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [(), ("q_proj", "v_proj")])
@pytest.mark.parametrize(("checkpointing", "layers"), [(False, 4), (True, 8)])
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-0.6B"])
def test_a_pass_with_adapters_takes_the_bytes_that_are_counted(
    name: str, checkpointing: bool, layers: int, targets: tuple[str, ...]
) -> None:
    """What frozen weights read is not kept, and no gradient of the head is made."""
    config = MODELS[name][0] | {"num_hidden_layers": layers}
    policy = build_policy(config, torch.bfloat16, checkpointing=checkpointing)
    adapters = Adapters(policy.model, LoraConfig(rank=64, targets=targets), name, 0)
    assert adapters.scale and count_weights(policy) > 2 * load_of(config, 1, checkpointing=False).num_params
    counted = count_pass(policy, 8192, 8192)
    load = load_of(config, 8192, checkpointing=checkpointing, adapters=AdapterLoad(64, targets))
    terms = {t.name: t.num_bytes for t in learner_terms(load)}
    angles = 8192 * 2 * 2 * load.shape.head_dim  # their cosines and sines, and 20 B more a token
    # Of the first block's keys no norm keeps anything: nothing before them is trained.
    few = 0.02 if load.shape.qk_norm and targets and not checkpointing else 0.003
    assert terms["activations"] + 8192 * 2 * config["hidden_size"] + angles == pytest.approx(counted.kept, rel=few)
    fullest = terms["head"] if "head" in terms else terms["one layer"]
    close = few if "head" in terms else 0.06
    assert terms["activations"] + fullest + angles == pytest.approx(counted.peak, rel=close)


@pytest.mark.slow
def test_zero_3_keeps_the_inputs_of_frozen_layers_too() -> None:
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    config, targets = MODELS["Qwen/Qwen2.5-7B"][0] | {"num_hidden_layers": 4}, ("q_proj", "v_proj")
    policy = build_policy(config, torch.bfloat16, checkpointing=False)
    Adapters(policy.model, LoraConfig(rank=64, targets=targets), "model", 0)
    counted = count_pass(policy, 8192, 8192, linear=zero3_linear_wrap)
    load = load_of(config, 8192, checkpointing=False, adapters=AdapterLoad(64, targets))
    angles = 8192 * 2 * 2 * load.shape.head_dim
    for stage, right in ((3, True), (2, False)):
        terms = {t.name: t.num_bytes for t in learner_terms(dataclasses.replace(load, zero_stage=stage))}
        kept = terms["activations"] + 8192 * 2 * config["hidden_size"] + angles
        assert (kept == pytest.approx(counted.kept, rel=0.003)) is right


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B"])
def test_where_the_head_is_small_one_layer_is_the_fullest_moment(name: str, dtype: torch.dtype) -> None:
    config = MODELS[name][0] | {"vocab_size": 512, "num_hidden_layers": 4}
    counted = count_pass(build_policy(config, dtype, checkpointing=True), 16384, 16384)
    load = load_of(config, 16384, checkpointing=True, unit=dtype.itemsize)
    assert term(load, "activations") + term(load, "one layer") == pytest.approx(counted.peak, rel=0.1)


def test_checkpointing_keeps_a_thirtieth_to_a_fiftieth_of_a_layer() -> None:
    """By hand, Qwen2.5-7B: 101 and 220 KiB a token and layer at 1.5B and 7B, against 2 B x hidden."""
    assert (
        sizing_learner.layer_bytes(load_of(MODELS["Qwen/Qwen2.5-1.5B"][0], 1, checkpointing=False).shape, 2) == 103472
    )
    assert sizing_learner.layer_bytes(load_of(MODELS["Qwen/Qwen2.5-7B"][0], 1, checkpointing=False).shape, 2) == 225392


def test_the_constants_are_those_of_the_learner() -> None:
    from capo_ray.learners import zero
    from capo_ray.loss import head, logprobs

    assert sizing_learner.BUCKET_NUMEL == zero.BUCKET_NUMEL
    assert sizing_learner.CPU_BLOCK_BYTES == logprobs.CPU_BLOCK_BYTES
    assert sizing_learner.GPU_BLOCK_BYTES == logprobs.GPU_BLOCK_BYTES
    assert (head.CPU_TILE_ROWS, head.CPU_TILE_BYTES) == sizing_learner.CPU_TILE
    assert (head.GPU_TILE_ROWS, head.GPU_TILE_BYTES) == sizing_learner.GPU_TILE
    config: Any = zero._config(3, "bfloat16", 1.0, 10**10, 10**10, "cuda")
    live = config["zero_optimization"]["stage3_max_live_parameters"]
    prefetch = config["zero_optimization"]["stage3_prefetch_bucket_size"]
    assert live + prefetch == sizing_learner.LIVE_BUCKETS * zero.BUCKET_NUMEL
    for stage, device in ((1, "cuda"), (2, "cuda"), (2, "cpu"), (3, "cuda")):
        config = zero._config(stage, "bfloat16", 1.0, 10**10, 10**10, device)
        assert config["zero_optimization"]["overlap_comm"] == (stage >= 2 and device == "cuda")
        assert config["communication_data_type"] == config["data_types"]["grad_accum_dtype"] == "fp32"
        assert config["bf16"]["immediate_grad_update"] == (stage == 1)


def test_states_are_split_over_ranks_by_stage() -> None:
    """10 parameters in bf16 over 2 ranks, by hand: stage 3 splits weights too, stage 0 nothing."""
    config = QWEN | UNTIED | widths(2, 4, 1, 1, 1, 4)
    held = {
        stage: {
            t.name: t.num_bytes
            for t in learner_terms(
                load_of(config, 1, checkpointing=False, zero_stage=stage, num_ranks=2, num_params=10, reference=True)
            )
        }
        for stage in (0, 1, 2, 3)
    }
    assert [held[stage]["weights"] for stage in range(4)] == [20, 20, 20, 10]
    assert [held[stage].get("masters") for stage in range(4)] == [None, 20, 20, 20]
    assert [held[stage]["moments"] for stage in range(4)] == [80, 40, 40, 40]
    assert [held[stage]["gradients"] for stage in range(4)] == [40, 40, 20, 20], "summed in fp32, split from stage 2 on"
    assert [held[stage]["reference"] for stage in range(4)] == [10, 10, 10, 10], "split in every stage"


@pytest.mark.parametrize(
    ("stage", "unit", "on_gpu", "expected"),
    [
        (1, 2, False, 2 * 800),
        (1, 4, False, 4 * 200),
        (2, 2, True, 2 * 2 * 200 + 4 * 800 + 2 * 800),
        (2, 2, False, 2 * 200 + 4 * 800 + 2 * 800),
        (2, 4, True, 2 * 4 * 200 + 4 * 800),
        (3, 2, False, 2 * 1000 + 4 * 200 + 4 * 800 + 4 * 800 + 2 * 800),
        (3, 4, False, 4 * 1000 + 4 * 200 + 4 * 800 + 4 * 800),
    ],
)
def test_the_buffers_of_a_stage_by_hand(stage: int, unit: int, on_gpu: bool, expected: int) -> None:
    """Millions of bytes: 2,000M parameters, a head of 800M (not tied), buckets of 200M; from DeepSpeed 0.19's source.

    `setup_buckets` makes two buckets of stage 2 in the weights' dtype where communication overlaps, `average_tensor`
    casts one; stage 3 has one in fp32, and `reduce_scatter_coalesced` copies it.
    """
    config = QWEN | UNTIED | widths(1000, 4, 1, 1, 1, 800_000)
    load = load_of(config, 1, checkpointing=True, unit=unit, zero_stage=stage, num_ranks=2, on_gpu=on_gpu)
    load = dataclasses.replace(load, num_params=2_000_000_000)
    base = sizing_learner.GPU_BASE_BYTES if on_gpu else 0
    assert term(load, "buffers") == expected * 10**6 + base


def test_a_rank_of_fsdp_holds_its_part_and_what_a_pass_makes_whole() -> None:
    """By hand: hidden 4, one head of 4, inner 8, 10 words, not tied; a block is 4 x 16 + 3 x 32 + 2 x 4 = 168 weights.

    Two blocks, embedding and head of 40 each and a norm of 4: 420. Over 2 ranks in bf16: masters 4, moments 8,
    gradients 4. Whole in a pass: 84 + 2 x 168; gradients of 84 in bf16, and the larger of 84 in fp32 and a block's.
    """
    config = QWEN | UNTIED | widths(4, 8, 2, 1, 1, 10) | {"model_type": "llama", "head_dim": 4}
    load = load_of(config, 1, checkpointing=True, num_ranks=2, on_gpu=False, fsdp=True)
    assert load.num_params == 420
    terms = {t.name: t.num_bytes for t in learner_terms(load)}
    assert [terms[name] for name in ("masters", "moments", "gradients")] == [840, 1680, 840]
    assert terms["buffers"] == 2 * (84 + 2 * 168) + 2 * 84 + (2 + 4) * 168 and "weights" not in terms
    adapted = {
        t.name: t.num_bytes for t in learner_terms(dataclasses.replace(load, adapters=AdapterLoad(1, ("q_proj",))))
    }
    assert [adapted[name] for name in ("weights", "masters", "moments")] == [420, 2 * 8 * 4 / 2, 2 * 8 * 8 / 2]
    assert adapted["buffers"] == 2 * (84 + 2 * 168) + (2 + 4) * 8


def test_the_host_holds_what_ranks_offload_in_pinned_pieces_of_powers_of_two() -> None:
    """By hand, the model above over 2 ranks in bf16; its matrices: 2 of 40 weights, 8 of 16, 6 of 32.

    FSDP2 pins each one's rows in fp32, 80 bytes in 128, 32 and 64: 896. On the device come and go 168 weights' rows and
    gradients in fp32 and their cast. ZeRO-3 pins 210 gradients of 4 bytes twice, in 1,024. Beside adapters of 16
    weights the rows are in bf16: 40 bytes in 64, 16 and 32.
    """
    config = QWEN | UNTIED | widths(4, 8, 2, 1, 1, 10) | {"model_type": "llama", "head_dim": 4}
    fsdp = load_of(config, 1, checkpointing=True, num_ranks=2, on_gpu=False, fsdp=True)

    def on_host(load: LearnerLoad) -> dict[str, float]:
        return {t.name: t.num_bytes for t in offloaded_terms(dataclasses.replace(load, offload=True))}

    def on_device(load: LearnerLoad) -> dict[str, float]:
        return {t.name: t.num_bytes for t in learner_terms(dataclasses.replace(load, offload=True))}

    assert on_host(fsdp) == {"masters": 896, "gradients": 896, "moments": 1680}
    assert on_device(fsdp)["buffers"] == term(fsdp, "buffers") + (4 + 4 + 2) * 168
    assert not {"weights", "masters", "gradients", "moments", "move"} & on_device(fsdp).keys()
    zero = dataclasses.replace(fsdp, fsdp=False, zero_stage=3)
    assert on_host(zero) == {"masters": 840, "gradients": 2048, "moments": 1680}
    assert on_device(zero)["weights"] == 420 and not {"masters", "gradients", "moments"} & on_device(zero).keys()
    adapted = dataclasses.replace(fsdp, adapters=AdapterLoad(1, ("q_proj",)))
    assert on_host(adapted) == {"weights": 448, "masters": 32, "gradients": 32, "moments": 64}
    assert on_device(adapted)["buffers"] == term(adapted, "buffers") + 2 * 168
    for one in (adapted, dataclasses.replace(adapted, fsdp=False, zero_stage=3)):  # N is the model's, by its row
        here = [*learner_terms(one), *offloaded_terms(dataclasses.replace(one, offload=True))]
        assert {t.formula for t in here if t.name == "moments"} == {"8 B x 16 of adapters / 2"}


def test_the_cache_of_a_token_by_hand() -> None:
    """Qwen2.5-72B: 2 x 80 layers x 8 heads x 128 x 2 B = 327,680 B; a quarter of it on each of four GPUs."""
    shape = known_shape("Qwen/Qwen2.5-72B-Instruct")
    assert shape is not None
    assert kv_bytes_per_token(shape, 2) == 327_680
    assert kv_bytes_per_token(shape, 2, 4) == 81_920
    small = Shape(8, 8, 1, 4, 1, 2, 8, True)
    assert kv_bytes_per_token(small, 2, 4) == kv_bytes_per_token(small, 2)  # one head cannot be split


def test_an_engines_share_is_weights_working_memory_and_cache() -> None:
    shape = known_shape("Qwen/Qwen2.5-7B")
    assert shape is not None
    terms = engine_terms(EngineLoad(shape, shape.num_params, 2, 1, 256, 60 * 2**30))
    assert total(terms) == pytest.approx(60 * 2**30)
    assert terms[0].num_bytes == 2 * 7_615_616_512
    assert 35 < terms[-1].gib < 45
    fewer = engine_terms(EngineLoad(shape, shape.num_params, 2, 1, 256, 60 * 2**30, batched_tokens=2048))
    # 14,336 tokens less of 2 B x (3 x 18944 + 6 x 3584)
    assert fewer[-1].num_bytes - terms[-1].num_bytes == 14336 * 2 * (3 * 18944 + 6 * 3584)


def test_a_step_of_an_engine_has_no_more_tokens_than_the_plan_counts() -> None:
    from capo_ray.engines import runtime

    assert runtime.GPU_BATCH_TOKENS[1] == BATCHED_TOKENS


def test_bundles_go_into_nodes_whole() -> None:
    assert pack([4, 1, 2], 1, 8)
    assert not pack([4, 4, 1], 1, 8)
    assert not pack([8, 4, 5], 2, 8)  # 17 GPUs of 16
    assert not pack([5, 5, 5], 2, 8)  # 15 of 16, and yet the third finds no node whole
    assert pack([0.5, 0.5, 0.5, 7], 2, 8)
    assert not pack([0.6, 0.6, 7], 1, 8)
    assert pack([], 0, 0)


@pytest.mark.parametrize("config", [{}, {"hidden_size": 8}, {**MODELS["Qwen/Qwen3-0.6B"][0], "num_experts": 8}])
def test_what_is_no_dense_transformer_has_no_shape(config: dict[str, Any]) -> None:
    assert shape_of(config) is None


def test_cuda_memory_grows_in_place_unless_the_user_says_otherwise() -> None:
    """What fragments is not in the plan: microbatches of differing lengths would leave blocks that nothing fits."""
    environment: dict[str, str] = {}
    grow_segments(environment)
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    own = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}
    grow_segments(own)
    assert list(own) == ["PYTORCH_CUDA_ALLOC_CONF"]
