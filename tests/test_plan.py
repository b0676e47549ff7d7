"""The plan of a run, and the checks before it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from capo_ray.cli import architecture, checks, main, memory, plan
from capo_ray.cli.compose import compose_train
from capo_ray.cli.fit import refuse_misfit
from capo_ray.cli.memory import estimate_memory
from capo_ray.cli.memory_ranks import GIB, LEARNER_BASE_GIB
from capo_ray.cli.models import find_model
from capo_ray.cli.schema import ConfigError
from capo_ray.config import TrainConfig
from capo_ray.demand import demand, models
from capo_ray.place.capacity import bundles_of
from capo_ray.place.judging import engine_spec
from capo_ray.place.role import path_of
from capo_ray.protocols import RunFailed
from capo_ray.sizing.engine import CPU_HEAD_DIMS
from capo_ray.sizing.gpus import read_gpus, sizes_of
from tests.model_files import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def config_with(model: Path, *overrides: str) -> TrainConfig:
    return compose_train([f"model={model}", f"critic={model}", *overrides])


def sentence(config: TrainConfig) -> str:
    with pytest.raises(RunFailed) as caught:
        checks.check_train(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_batch_algebra_by_hand() -> None:
    overrides = ["learner.groups_per_batch=12", "rollout.group_size=16", "critic.num_votes=4", "stream.max_age=2"]
    batch = plan.batch_algebra(compose_train([*overrides, "learner.num_epochs=3", "run.num_updates=10"]))
    assert batch["responses_per_update"] == 192
    assert batch["slots"] == 36
    assert batch["max_critiques_per_update"] == 768
    assert batch["optimizer_moves_per_update"] == 3
    assert batch["responses"] == 1920
    assert plan.batch_algebra(compose_train([*overrides, "stream.slots=30"]))["slots"] == 30


@pytest.mark.parametrize("slots", [7, 17])
def test_slots_that_never_fill_a_batch_or_let_groups_grow_too_old_are_refused(slots: int) -> None:
    with pytest.raises(ConfigError, match=rf"from learner.groups_per_batch=8 to 8 x .* = 16 \(got {slots}\)"):
        compose_train([f"stream.slots={slots}", "learner.groups_per_batch=8", "stream.max_age=1"])


def test_a_method_without_critiques_has_no_critic_in_its_plan() -> None:
    config = compose_train(["credit=grpo"])
    assert plan.batch_algebra(config)["max_critiques_per_update"] == 0
    assert "critic" not in {one.role for one in demand(config)}
    assert "critic" not in {row.role for row in estimate_memory(config)}


def test_a_second_model_stands_in_the_plan_with_its_reference_where_it_has_one(model: Path) -> None:
    rows = {}
    for method in ("prime", "istar"):
        sizes = ["reward_model.num_ranks=2", "reward_model.num_cpus=0.25"]
        config = compose_train([f"credit={method}", f"model={model}", *sizes])
        actor = next(one for one in demand(config) if one.role == "reward_model")
        assert (actor.count, actor.num_cpus) == (2, 0.25)
        rows[method] = next(row for row in estimate_memory(config) if row.role == "reward model")
        assert rows[method].count == 2
    # 12 parameters, a reference of 4 bytes each, split over two ranks
    assert (rows["prime"].gib_each - rows["istar"].gib_each) * GIB == pytest.approx(12 * 4 / 2, abs=1)
    assert "reward_model" not in {one.role for one in demand(compose_train([]))}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["credit=grpo"],
        ["credit=prime", "reward_model.num_ranks=3"],
        ["experiment=paper_1_5b", "engine.num_workers=3"],
    ],
)
def test_the_plan_asks_for_what_the_launch_asks_for(overrides: list[str]) -> None:
    config = compose_train(overrides)
    planned, bundles = plan.to_json(config)["placement"], bundles_of(config)
    assert sum(a["count"] * a["num_cpus"] for a in planned) == sum(bundle.get("CPU", 0.0) for bundle in bundles)
    assert sum(a["count"] * a["num_gpus"] for a in planned) == sum(bundle.get("GPU", 0.0) for bundle in bundles)


def test_the_learners_memory_by_hand(model: Path) -> None:
    """12 parameters in fp32, a layer of width 2 with 8 inner, 6 words; 16 tokens in the largest microbatch.

    One rank: weights 4, masters 4, moments 8, gradients 4, reference 4 = 24 bytes each; a bucket of 12 numbers and the
    head's gradient of 12. A token: the layer 2 norms x 12 x 2 + q, k, v, output 32 + 4 + inner 4 x 4 x 8 = 212, the
    last norm 16, logits and their gradient 48, the head's input 8, five blocks of 6 numbers 120.
    """
    sizes = ["model.max_model_len=16", "rollout.max_response_tokens=8", "learner.microbatch_tokens=10"]
    row = next(row for row in estimate_memory(config_with(model, *sizes)) if row.role == "learner")
    buffers = (12 + 12) * 4
    in_pass = 16 * (212 + 16 + 48 + 8 + 120)
    assert row.gib_each * GIB == pytest.approx(LEARNER_BASE_GIB * GIB + 12 * 24 + buffers + in_pass)
    sharded = config_with(model, *sizes, "learner.num_ranks=4", "learner.zero_stage=1")
    row = next(row for row in estimate_memory(sharded) if row.role == "learner")
    states = 12 * (4 + 4 / 4 + 8 / 4 + 4 + 4 / 4)
    assert row.gib_each * GIB == pytest.approx(LEARNER_BASE_GIB * GIB + states + 12 * 4 + in_pass)


def test_adapters_alone_have_masters_moments_and_gradients(model: Path) -> None:
    """By hand, as above: rank 4 on q, k, v, o of 2 x 2 and gate, up, down of 2 x 8 is 4 x (4 x 4 + 3 x 10) = 184.

    Weights and adapters 4 bytes each; masters 4, moments 8 and gradients 4 of adapters alone, no reference; a bucket of
    184 numbers. A token of the layer: 244 - 32 (the normed numbers) + 7 x 16 (what each A gives); the last norm 8, its
    copy, and as many less of the first, since no gradient goes into the embedding.
    """
    sizes = ["model.max_model_len=16", "rollout.max_response_tokens=8", "learner.microbatch_tokens=10"]
    (model / "model.safetensors").unlink()
    config = config_with(model, *sizes, "loss.kl_coef=0.1", "learner.lora.rank=4")
    row = next(row for row in estimate_memory(config) if row.role == "learner")
    terms = {term.name: term.num_bytes for term in row.terms}
    assert "reference" not in terms
    assert [terms[name] for name in ("adapters", "masters", "moments", "gradients", "buffers")] == [
        184 * size for size in (4, 4, 8, 4, 4)
    ]
    assert terms["activations"] == 16 * (244 - 32 + 112 + 8 - 8)


@pytest.mark.parametrize(
    ("more", "packing", "words"),
    [
        (
            {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
            "shared",
            "final_logit_softcapping=30.0 in",
        ),
        ({"logit_scale": 0.25}, "padded", "got logit_scale=0.25 in"),
        ({"logits_scaling": 8.0}, "shared", "got logits_scaling=8.0 in"),
        ({"attn_logit_softcapping": 50.0}, "shared", "attn_logit_softcapping=50.0 in"),
        ({"attention_chunk_size": 8192}, "shared", "attention_chunk_size=8192 in"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "shared", "got linear_attention in"),
        ({"layer_types": ["conv"], "conv_L_cache": 3}, "shared", "got conv, conv_L_cache, of a recurrence in"),
        ({"model_type": "gpt_oss"}, "shared", "got attention sinks in"),
    ],
)
def test_models_that_a_learner_cannot_train_are_refused_by_what_their_config_says(
    model: Path, more: dict[str, object], packing: str, words: str
) -> None:
    """The keys of Gemma 2, Cohere 2, Granite, Llama 4, Qwen3-Next, LFM2 and gpt-oss."""
    kept = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(kept | more))
    said = sentence(config_with(model, f"learner.packing={packing}"))
    assert words in said and said.startswith("model.path: ")
    head = "logits are its head" in said
    assert said.endswith("give another model" if head else "set learner.packing=padded")
    plain = {"final_logit_softcapping": None, "logit_scale": 1.0, "layer_types": ["sliding_attention"]}
    (model / "config.json").write_text(json.dumps(kept | plain))
    architecture.check_architecture(config_with(model))
    if not head:
        (model / "config.json").write_text(json.dumps(kept | more))
        architecture.check_architecture(config_with(model, "learner.packing=padded"))


def test_layers_that_get_adapters_and_are_not_there_are_refused_before_anything_starts(model: Path) -> None:
    tensors = {
        "model.layers.0.self_attn.q_proj.weight": [2, 2],
        "model.layers.0.norm.weight": [2],
        "head.weight": [2, 2],
    }
    header = json.dumps({name: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for name, s in tensors.items()})
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    said = sentence(config_with(model, "learner.lora.rank=4", "learner.lora.targets=[q_proj,v_proj,head]"))
    assert re.search(r"learner.lora.targets must name linear layers .*got v_proj, head\); it has q_proj$", said), said


def test_an_offloaded_reference_is_host_memory_of_each_rank(model: Path) -> None:
    """12 parameters of 4 bytes over 2 ranks."""
    on_gpus = ["learner.num_gpus=1", "learner.num_ranks=2", "loss.kl_coef=0.1"]
    rows = {
        offload: {
            row.role: row
            for row in estimate_memory(config_with(model, *on_gpus, f"learner.offload_reference={offload}"))
        }
        for offload in ("false", "true")
    }
    assert "reference" not in rows["false"] and "reference" not in {t.name for t in rows["true"]["learner"].terms}
    host = rows["true"]["reference"]
    assert (host.count, host.on_gpu, host.gib_each * GIB) == (2, False, 24)
    assert (rows["false"]["learner"].gib_each - rows["true"]["learner"].gib_each) * GIB == pytest.approx(24, abs=1)


@pytest.mark.parametrize("backend", ["fsdp", "zero"])
def test_offloaded_states_leave_the_gpu_and_are_told_as_host_memory(model: Path, backend: str) -> None:
    """By hand, in fp32 over 2 ranks: `model`'s matrices and what each backend pins, in powers of two."""
    keys = ["learner.num_gpus=1", "learner.num_ranks=2", f"learner.backend={backend}"]
    keys += ["learner.zero_stage=3"] * (backend == "zero")
    on, off = (
        {row.role: row for row in estimate_memory(config_with(model, *keys, f"learner.offload_states={offload}"))}
        for offload in ("true", "false")
    )
    names = {kind: [t.name for t in rows["learner"].terms] for kind, rows in (("on", on), ("off", off))}
    assert {"moments", "gradients"} <= set(names["off"]) and not {"masters", "moments", "gradients"} & set(names["on"])
    assert ("weights" in names["on"]) == (backend == "zero")
    host = on["learner's states"]
    assert (host.count, host.on_gpu) == (2, False) and "learner's states" not in off
    assert [t.name for t in host.terms if t.name == "moments"] and "pinned" in str(host.terms)
    told = {
        given: plan.to_text(config_with(model, *keys, f"learner.offload_states={given}")) for given in ("true", "false")
    }
    for words in ("learner's states", "without the learner's traffic with host memory"):
        assert words in told["true"] and words not in told["false"]


@pytest.mark.parametrize("given", ["learner.zero_stage=2", "learner.backend=torch"])
def test_states_of_a_backend_that_holds_more_than_its_part_are_not_offloaded(given: str) -> None:
    with pytest.raises(ConfigError, match=r"needs learner.backend=fsdp or learner.zero_stage=3, .*\(got learner"):
        compose_train(["learner.num_gpus=1", given, "learner.offload_states=true"])


def test_the_printed_plan_names_every_actor_and_every_formula(model: Path) -> None:
    text = plan.to_text(config_with(model))
    for word in (
        "rollout",
        "verifier",
        "critic",
        "learner",
        "64 responses per update",
        "16 slots",
        "N=12",
        "host together",
    ):
        assert word in text


def test_the_object_store_is_sized_from_the_model_and_the_plan_says_what_it_cannot_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """342,336 parameters of 4 bytes are 1.3 MiB; 7,615,616,512 of 2 bytes, twice, 29,051 MiB."""
    config = compose_train([])
    assert "object store 258 MiB, two versions and 256 MiB +" in plan.to_text(config)
    config = compose_train(["experiment=paper_7b", "cluster.object_store_mib=10000"])
    assert "10000 MiB, as given; 19051 MiB of two versions go through a file on disk" in plan.to_text(config)
    monkeypatch.setattr(memory, "shm_bytes", lambda: 8 * GIB)
    config = compose_train(["experiment=paper_7b"])
    assert "7372 MiB, two versions and 256 MiB; /dev/shm holds no more; 21678 MiB of two" in plan.to_text(config)


def test_a_fit_configuration_passes_every_check(model: Path, tmp_path: Path) -> None:
    checks.check_train(config_with(model, f"run.dir={tmp_path}"))


def test_workers_load_a_model_in_the_home_from_where_the_checks_have_found_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["credit=prime", "model.path=~/model", "reward_model.path=~/model", "run.dir=~/runs"]
    config = compose_train(words)
    checks.check_train(config)
    assert [path_of(one) for one in models(config)] == [str(model)] * 2
    config = compose_train(["critic.model=~/model"])
    spec = engine_spec(config)
    assert spec is not None and spec.model_path == str(find_model("~/model", "critic")) == str(model)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    assert "already holds a run" in sentence(compose_train([*words, "run.name=one"]))
    assert "there is no ~nobody-of-this-name/m" in sentence(compose_train(["model.path=~nobody-of-this-name/m"]))


def test_a_missing_model_directory_is_named(model: Path, tmp_path: Path) -> None:
    assert "there is no /no/such/model" in sentence(compose_train(["model=/no/such/model"]))
    assert "critic.model: expected" in sentence(compose_train([f"model={model}", "critic=/no/such/critic"]))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json is missing" in sentence(compose_train([f"model={empty}"]))


def test_a_missing_reward_model_is_named(model: Path) -> None:
    config = compose_train(["credit=prime", f"model={model}", "reward_model.path=/no/such/model"])
    assert "reward_model.path: expected" in sentence(config)


def test_a_hub_name_passes_online_and_is_refused_offline_unless_it_is_cached(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = compose_train(["model=organisation/name", f"critic={model}"])
    assert "not in the hub cache" in sentence(config)
    cached = tmp_path / "hub-home" / "hub" / "models--organisation--name" / "snapshots" / "abc"
    write_model(cached)
    assert find_model("organisation/name", "policy") == cached
    checks.check_train(config)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    checks.check_train(compose_train(["model=organisation/other", f"critic={model}"]))


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", vocab=5, tokens=6)
    assert "has ids up to 5, but the model embeds only 5" in sentence(config_with(folder))


def test_a_context_longer_than_the_models_positions_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", positions=128)
    assert "model.max_model_len must be <= 128" in sentence(config_with(folder))


def test_weights_that_were_cut_short_are_refused(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "is cut short" in sentence(config_with(model))
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 48\n")
    assert "is no safetensors file" in sentence(config_with(model))


def test_weights_of_which_a_file_is_missing_are_refused(model: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    text = sentence(config_with(model))
    assert "names 2 files, of which model-00002-of-00002.safetensors is missing; fetch the model again" in text


def test_an_adapter_beside_a_config_is_no_model(model: Path) -> None:
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    assert "holds an adapter" in sentence(config_with(model))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"is_encoder_decoder": True}, "got an encoder-decoder"),
        ({"architectures": ["BertForMaskedLM"]}, "got BertForMaskedLM"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "got Qwen2ForSequenceClassification"),
    ],
)
def test_a_model_that_does_not_go_on_with_a_text_is_refused(model: Path, more: dict[str, object], words: str) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **more}))
    assert f"expected a causal language model in {model}, {words}" in sentence(config_with(model))
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2ForCausalLM"]}))
    checks.check_plan(config_with(model))


def test_an_occupied_run_directory_is_refused_with_both_ways_out(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    text = sentence(config_with(model, f"run.dir={tmp_path}", "run.name=mine"))
    assert "choose another run.name, or go on with resume=" in text


def test_missing_and_empty_data_files_are_refused(model: Path, tmp_path: Path) -> None:
    assert "there is no" in sentence(config_with(model, "data=gsm8k", f"data.path={tmp_path}/no.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    assert "got an empty file" in sentence(config_with(model, "data=gsm8k", f"data.path={tmp_path}/empty.jsonl"))
    assert "data.path: expected the file" in sentence(config_with(model, "data=gsm8k"))


def test_too_little_memory_is_refused_with_the_largest_role(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "available_bytes", lambda: 2 << 30)
    text = sentence(config_with(model))
    assert "of free memory (most of it: " in text
    assert text.count("GiB") == 1 and "got 2.0" in text


def test_a_containers_limit_counts_where_it_is_lower_than_the_machines(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 400\n")
    assert checks.available_bytes(tmp_path) == 900
    (tmp_path / "memory.max").write_text("max\n")
    assert checks.available_bytes(tmp_path) > 1 << 20


def test_an_engine_with_fewer_gpus_than_tensor_ranks_is_refused(model: Path) -> None:
    text = sentence(config_with(model, "engine.num_gpus=1", "engine.tensor_parallel=2"))
    assert "set engine.num_gpus=2" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("learner.num_gpus=0.5", r"learner.num_gpus must be 1 with learner.num_ranks=2, since NCCL .*\(got 0.5\)"),
        ("learner.num_gpus=1.5", r"learner.num_gpus must be <= 1, .*\(got 1.5\); set 1, and raise learner.num_ranks"),
        ("engine.num_gpus=1.5", r"engine.num_gpus must be <= 1, .*\(got 1.5\)"),  # Ray takes whole ones above 1
        ("engine.num_gpus=4 engine.tensor_parallel=2", r"must be <= 2, those of engine.tensor_parallel \(got 4\)"),
        ("credit=prime reward_model.num_ranks=2 reward_model.num_gpus=0.5", r"reward_model.num_gpus must be 1 with "),
    ],
)
def test_gpus_that_an_actor_could_not_use_are_refused_and_so_are_ranks_on_shares(words: str, sentence: str) -> None:
    base = ["model=qwen2_5_7b", "engine=gpu", "learner=gpu", "credit=grpo", "learner.num_ranks=2"]
    with pytest.raises(RunFailed, match=sentence):
        refuse_misfit(compose_train([*base, *words.split()]))


def test_a_critic_that_is_no_engine_holds_no_gpus_whatever_engine_its_preset_is_of() -> None:
    for words in ("critic.backend=calculator", "critic.backend=endpoint critic.endpoint.base_url=http://x/v1"):
        config = compose_train(["experiment=paper_1_5b", *words.split()])
        assert config.critic.num_gpus == 4
        (critic,) = (one for one in demand(config) if one.role == "critic")
        assert critic.num_gpus == 0


def test_a_joined_cluster_is_not_measured_by_this_machine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "available_bytes", lambda: 0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    checks.check_train(config_with(model))


PLANNED = ("cluster.gpus_per_node=8", "cluster.gpu_memory_gib=79")
SEVEN_B = ("model=qwen2_5_7b", "engine=gpu", "learner=zero3", "credit=grpo", "learner.num_ranks=7", *PLANNED)


def misfit(*overrides: str) -> str:
    with pytest.raises(RunFailed) as caught:
        refuse_misfit(compose_train(overrides))
    return str(caught.value)


def test_more_gpus_than_the_nodes_have_are_refused_with_what_would_fit() -> None:
    """1 rollout, 4 critic and 8 learner GPUs on 8: three ranks fit, or two nodes."""
    text = misfit("model=qwen2_5_7b", "engine=gpu", "learner=zero3", "critic=qwen2_5_72b", *PLANNED)
    assert "expected 13 GPUs" in text and "got 8" in text
    assert text.endswith("lower learner.num_ranks to 3, or raise cluster.num_nodes to 2")
    sixteen = misfit(*SEVEN_B, "engine.num_gpus=16", "engine.tensor_parallel=16")
    assert "expected nodes of 16 GPUs" in sixteen and "got cluster.gpus_per_node=8" in sixteen


@pytest.mark.parametrize(
    ("policy", "processes", "sentence"),
    [
        ("qwen2_5_7b", 8, r"cannot share 28 attention heads of Qwen/Qwen2.5-7B\S*; set 1, 2, 4$"),
        ("qwen2_5_math_1_5b", 3, r"cannot share 2 heads of keys and values of .*; set 1, 2, 4$"),
        ("qwen2_5_math_1_5b", 6, r"cannot share the 8960 columns of its inner layers"),
        ("laptop", 2, r"cannot share 3 attention heads of laptop; set 1$"),
    ],
)
def test_processes_that_could_not_share_a_model_are_refused_with_those_that_could(
    policy: str, processes: int, sentence: str
) -> None:
    """By hand from vLLM's sources: it deals query heads, key-value heads (or copies them), columns and vocabulary."""
    config = compose_train([f"model={policy}", f"engine.tensor_parallel={processes}"])
    with pytest.raises(RunFailed, match=sentence):
        checks.check_tensor_parallel(config)


def test_a_rank_that_does_not_fit_is_refused_with_the_largest_setting_that_does() -> None:
    off = "learner.gradient_checkpointing=false"
    text = misfit(*SEVEN_B, off)
    assert text.startswith("learner: expected at most 79.0 GiB of memory") and "activations, 96" in text
    assert text.endswith("set learner.gradient_checkpointing=true")
    refuse_misfit(compose_train([*SEVEN_B, "learner.gradient_checkpointing=true"]))

    on = (*SEVEN_B, "learner.gradient_checkpointing=true", "learner.microbatch_tokens=131072")
    found = re.fullmatch(r".*largest learner.microbatch_tokens that fits: ([\d,]+)", misfit(*on))
    assert found is not None
    largest = int(found[1].replace(",", ""))
    refuse_misfit(compose_train([*on[:-1], f"learner.microbatch_tokens={largest}"]))
    assert "memory" in misfit(*on[:-1], f"learner.microbatch_tokens={largest + 512}")


@pytest.mark.parametrize(
    ("policy", "ranks", "sentence"),
    [
        ("qwen2_5_7b", 8, r"learner.sequence_parallel=8 cannot share 28 attention heads of .*; set 1, 2, 4$"),
        ("qwen2_5_math_1_5b", 3, r"=3 cannot share 2 heads of keys and values of .*; set 1, 2, 4, 6, 12$"),
    ],
)
def test_ranks_that_could_not_share_a_row_are_refused_with_those_that_could(
    policy: str, ranks: int, sentence: str
) -> None:
    """By hand: 28 and 12 heads of queries, 4 and 2 of keys and values, which several ranks may have the same of."""
    row = [f"learner.num_ranks={ranks}", f"learner.sequence_parallel={ranks}"]
    with pytest.raises(RunFailed, match=sentence):
        checks.check_sequence_parallel(compose_train([f"model={policy}", "credit=grpo", *row]))


def test_a_context_beyond_one_ranks_memory_asks_for_ranks_that_share_it_and_they_do() -> None:
    long = (
        *SEVEN_B[:-3],
        "learner.num_ranks=8",
        "cluster.num_nodes=2",
        *PLANNED,
        "learner.gradient_checkpointing=true",
    )
    long += ("model.max_model_len=131072", "model.dtype=bfloat16", "loss.kl_coef=0")
    assert misfit(*long).endswith("set learner.sequence_parallel=2")
    refuse_misfit(compose_train([*long, "learner.sequence_parallel=2"]))
    assert "sequence_parallel" not in misfit(*long, "learner.packing=padded"), "rows of segments alone are shared"


def test_rows_are_shared_by_all_of_the_ranks_and_only_as_they_can_be(model: Path) -> None:
    for given, got in (
        ("learner.num_ranks=3", "3, shared and zero"),
        ("learner.num_ranks=2 learner.packing=padded", "2, padded and zero"),
    ):
        with pytest.raises(ConfigError, match=f"sequence_parallel=2 needs .* [(]got {got}[)]"):
            compose_train(["learner.sequence_parallel=2", *given.split()])


def test_states_that_do_not_fit_ask_for_ranks_and_those_ranks_fit() -> None:
    few = ("model=Qwen/Qwen2.5-32B", "model.dtype=bfloat16", "engine=gpu", "engine.num_gpus=2")
    few += ("engine.tensor_parallel=2", "learner=zero3", "credit=grpo", "loss.kl_coef=0", "cluster.gpu_memory_gib=79")
    few += ("learner.gradient_checkpointing=true", "learner.microbatch_tokens=4096")
    text = misfit(*few, "learner.num_ranks=4")
    assert text.endswith("raise learner.num_ranks to 16, or set learner.offload_states=true")
    refuse_misfit(compose_train([*few, "learner.num_ranks=4", "learner.offload_states=true"]))
    refuse_misfit(compose_train([*few, "learner.num_ranks=16"]))


def test_a_share_of_a_gpu_is_a_share_of_its_memory(model: Path, tmp_path: Path) -> None:
    refuse_misfit(compose_train(["experiment=one_gpu"]))
    assert "lower engine.gpu_memory_frac to 0.3" in misfit("experiment=one_gpu", "engine.gpu_memory_frac=0.6")
    assert "expected at most 7.8 GiB of memory" in misfit("experiment=one_gpu", "learner.num_gpus=0.2")
    beside = ["critic.placement=colocated", "engine.num_gpus=0.5", "critic.num_gpus=0.5", "engine.gpu_memory_frac=0.45"]
    checks.check_tensor_parallel(config_with(model, *beside, "critic.gpu_memory_frac=0.45"))


def test_an_engine_whose_weights_do_not_fit_is_refused() -> None:
    judge = ("critic=qwen2_5_72b", "critic.num_gpus=1", "critic.tensor_parallel=1", "cluster.gpu_memory_gib=79")
    text = misfit(*judge)
    assert text.startswith("critic: expected room for one sequence") and "memory" in text
    assert text.endswith("raise critic.tensor_parallel and critic.num_gpus to 4")
    refuse_misfit(compose_train(["critic=qwen2_5_72b", "cluster.gpu_memory_gib=79"]))


def test_without_a_device_nothing_is_refused_and_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "found_gib", lambda: None)
    config = compose_train(["engine=gpu", "learner=gpu", "model=qwen2_5_7b", "credit=grpo", "learner.num_ranks=1"])
    refuse_misfit(config)
    assert "give cluster.gpu_memory_gib" in plan.to_text(config)
    monkeypatch.setattr(memory, "found_gib", lambda: 24.0)
    with pytest.raises(RunFailed, match=r"24\.0 GiB"):
        refuse_misfit(config)


def test_a_dry_run_prints_the_plan_and_ends_as_the_check_does(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", "--dry-run", "engine=gpu", "learner=gpu", "model=qwen2_5_1_5b", "credit=grpo", *PLANNED]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "?" not in printed.partition("# settings")[0] and "N=1,543,714,304" in printed
    assert main([*line, "cluster.gpu_memory_gib=16"]) == 1
    both = capsys.readouterr()
    twice, refusal = both.err.splitlines()
    assert "# memory" in both.out and "memory" in refusal and "cluster.gpu_memory_gib is given 2 times" in twice


@pytest.mark.parametrize("method", ["gspo", "cispo", "acpo"])
def test_a_dry_run_shows_the_choices_and_what_a_preset_sets_beside_them(method: str) -> None:
    shown = plan.to_text(compose_train([f"credit={method}"])).partition("# choices")[2].splitlines()[1:]
    assert shown[:2] == [f"credit={method}", "steps=entropy" if method == "acpo" else "steps=blank_line"]
    assert not any(line.startswith(("steps.", "credit.method")) for line in shown), "which are the segmenter's own"
    assert compose_train([f"credit={method}", *shown]) == compose_train([f"credit={method}"])


def test_the_whole_configuration_is_printed_when_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry-run", "learner.lr=1e-5"]) == 0
    brief = capsys.readouterr().out
    assert "learner.lr=1e-05" in brief and "keep_checkpoints" not in brief
    assert brief.startswith("# batch")
    assert main(["train", "--dry-run=full", "learner.lr=1e-5"]) == 0
    assert "keep_checkpoints: 2" in capsys.readouterr().out


def test_a_config_without_weights_is_enough_for_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "num_attention_heads": 4}
    (cached / "config.json").write_text(json.dumps(shape | {"intermediate_size": 128, "model_type": "llama"}))
    config = compose_train(["model=some/model"])
    checks.check_model(config.model.path, "policy", "model.path", 512)
    # 2 x 100 x 64 + 2 x (4 x 64 x 64 + 3 x 64 x 128 + 2 x 64) + 64
    assert "N=95,040" in plan.to_text(config)


def test_a_pipe_among_a_models_files_is_refused_before_anyone_opens_it(model: Path) -> None:
    os.mkfifo(model / "more.safetensors")
    assert "more.safetensors is none; remove it" in sentence(config_with(model))


def test_the_gpus_here_must_have_bf16_and_the_memory_that_the_plan_counts_on() -> None:
    found = sizes_of(read_gpus("NVIDIA H100, 81559, 580.65, 9.0\nTesla T4, 15360, 580.65, 7.5\n"))
    assert [round(gib) for gib, _ in found] == [80, 15]
    config = compose_train(["engine=gpu", "learner=gpu", "model=qwen2_5_1_5b", "credit=grpo", *PLANNED])
    with pytest.raises(RunFailed, match=r"model.dtype=bfloat16 needs GPUs .* got 7\.5; set model.dtype=float32"):
        checks.check_devices(config, found)
    with pytest.raises(RunFailed, match=r"at most 15\.0 GiB of memory"):
        checks.check_devices(config, [(15.0, 8.0)])
    checks.check_devices(config, [(79.6, 9.0)])
    checks.check_devices(config, [])


def test_heads_that_vllm_does_not_compute_on_cpus_are_refused_before_a_start(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "v1" / "attention" / "backends" / "cpu_attn.py").read_text()
    (listed,) = re.findall(r"def get_supported_head_sizes\(cls\)[^\[]*\[int\]:\n\s+return (\[[\d, ]+\])", source)
    assert json.loads(listed) == list(CPU_HEAD_DIMS)
    folder = write_model(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    more = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 4}
    (folder / "config.json").write_text(json.dumps(settings | more))
    line = ["credit=grpo", f"model={folder}"]
    with pytest.raises(RunFailed, match=r"model.path: expected attention heads .* 32, 64, .* got 16 .*engine=gpu"):
        checks.check_engine_arguments(compose_train(line))
    checks.check_engine_arguments(compose_train([*line, "engine=gpu"]))
