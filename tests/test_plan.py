"""The plan of a run, and the checks before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from capo_ray.cli import checks, plan
from capo_ray.cli.compose import compose_train
from capo_ray.cli.models import find_model
from capo_ray.config import TrainConfig
from capo_ray.place.cluster import demand_of
from capo_ray.protocols import RunFailed
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


def test_a_method_without_critiques_has_no_critic_in_its_plan() -> None:
    config = compose_train(["credit=grpo"])
    assert plan.batch_algebra(config)["max_critiques_per_update"] == 0
    assert "critic" not in {actor.role for actor in plan.place_actors(config)}
    assert "critic" not in {row.role for row in plan.estimate_memory(config)}


def test_a_second_model_stands_in_the_plan_with_its_reference_where_it_has_one(model: Path) -> None:
    rows = {}
    for method in ("prime", "istar"):
        sizes = ["reward_model.num_ranks=2", "reward_model.num_cpus=0.25"]
        config = compose_train([f"credit={method}", f"model={model}", *sizes])
        actor = next(actor for actor in plan.place_actors(config) if actor.role == "reward model")
        assert (actor.count, actor.num_cpus) == (2, 0.25)
        rows[method] = next(row for row in plan.estimate_memory(config) if row.role == "reward model")
        assert rows[method].count == 2
    # 12 parameters, a reference of 4 bytes each
    assert (rows["prime"].gib_each - rows["istar"].gib_each) * plan.GIB == pytest.approx(12 * 4, abs=1)
    assert "reward model" not in {actor.role for actor in plan.place_actors(compose_train([]))}


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
    actors, demand = plan.place_actors(config), demand_of(config)
    assert sum(a.count * a.num_cpus for a in actors) == demand.num_cpus
    assert sum(a.count * a.num_gpus for a in actors) == demand.num_gpus


def test_the_learners_memory_by_hand(model: Path) -> None:
    """12 parameters in fp32, one rank: weights 4, gradients 4, moments 8, reference 4 = 20 bytes each."""
    config = config_with(model, "learner.microbatch_tokens=10")
    row = next(row for row in plan.estimate_memory(config) if row.role == "learner")
    activations = 10 * (1 * 2 * 16 * 4 + 12 * 6)
    assert row.gib_each * plan.GIB == pytest.approx(plan.LEARNER_BASE_GIB * plan.GIB + 12 * 20 + activations)
    sharded = config_with(model, "learner.num_ranks=4", "learner.zero_stage=3", "learner.microbatch_tokens=10")
    row = next(row for row in plan.estimate_memory(sharded) if row.role == "learner")
    assert row.gib_each * plan.GIB == pytest.approx(plan.LEARNER_BASE_GIB * plan.GIB + 12 * 5 + activations)


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


def test_a_fit_configuration_passes_every_check(model: Path, tmp_path: Path) -> None:
    checks.check_train(config_with(model, f"run.dir={tmp_path}"))


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


def test_a_joined_cluster_is_not_measured_by_this_machine(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "available_bytes", lambda: 0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    checks.check_train(config_with(model))
