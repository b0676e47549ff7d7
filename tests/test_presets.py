"""The presets of conf/: each fits the devices that it names, and says of the paper what it does."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cli import main
from capo_ray.cli.compose import compose_train, conf_dir, list_choices
from capo_ray.cli.eval_settings import compose_eval, read_suites
from capo_ray.cli.fit import bundles, refuse_misfit
from capo_ray.cli.memory import estimate_memory
from capo_ray.cli.pace import estimate_pace, to_words, whole_hours
from capo_ray.cli.sft import read_config
from capo_ray.config import TrainConfig
from capo_ray.protocols import RunFailed

ROOT = Path(__file__).parents[1]
PAPER = [name for name in list_choices("experiment") if name.startswith("paper_") or name == "capo_32b"]
"""The paper's runs, and its settings at a size that is not in it."""
# arXiv 2508.02298: critic, vote and learning rate of each policy; the 32B is not in it.
OF_THE_PAPER: dict[str, tuple[str, str, float]] = {
    "paper_1_5b": ("Qwen/Qwen2.5-72B-Instruct", "intersection", 1e-7),
    "paper_7b": ("Qwen/Qwen2.5-72B-Instruct", "majority", 2e-8),
    "paper_llama_1b": ("meta-llama/Meta-Llama-3-70B-Instruct", "intersection", 5e-8),
    "paper_llama_3b": ("meta-llama/Meta-Llama-3-70B-Instruct", "majority", 2e-8),
}


def preset(name: str, *overrides: str) -> TrainConfig:
    return compose_train([f"experiment={name}", *overrides])


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_preset_fits_the_gpus_that_it_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"experiment={name}", "--dry-run"]) == 0
    assert "?" not in capsys.readouterr().out.partition("# settings")[0]
    config = preset(name)
    assert config.cluster.gpu_memory_gib == 79  # of an 80 GB H100
    assert sum(bundles(config)) <= config.cluster.num_nodes * config.cluster.gpus_per_node
    assert all(row.gib_each <= 79 for row in estimate_memory(config) if row.on_gpu)


PAGE = ROOT / "docs" / "tutorials" / "reproducing_the_paper.md"


@pytest.mark.parametrize("name", PAPER)
def test_the_page_of_the_paper_tells_each_presets_gpus_memory_and_hours(name: str) -> None:
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}`")]
    config = preset(name)
    cluster, tiers = config.cluster, estimate_pace(config)
    gib = {one.role: one.gib_each for one in estimate_memory(config) if one.on_gpu}
    assert [cell.strip() for cell in row.split("|")[3:-1]] == [
        f"{sum(bundles(config)):g} of {cluster.num_nodes * cluster.gpus_per_node}",
        ", ".join(f"{gib[role]:.1f}" for role in ("rollout", "critic", "learner")),
        f"{config.run.num_updates:,}",
        f"{max(tier.seconds for tier in tiers):.0f}",
        f"{whole_hours(tiers, config.run.num_updates):.0f}",
    ]
    assert f"take {whole_hours(tiers, config.run.num_updates):,.1f} h" in to_words(tiers, config.run.num_updates)[-1]


@pytest.mark.parametrize("name", PAPER)
def test_every_command_of_that_page_is_one_for_every_preset_down_to_its_evaluation(name: str, tmp_path: Path) -> None:
    """With the preset's own model in place of the directories that the steps before make."""
    path = preset(name).model.path
    choice = {"Qwen2.5": "qwen2_5", "Llama-3.2": "llama3_2"}[
        Path(path).name.removesuffix("-Instruct").rsplit("-", 1)[0]
    ]
    base = "" if path.endswith("-Instruct") else "_base"
    model = f"model={choice}_{name.removeprefix('paper_').removeprefix('capo_').removeprefix('llama_')}{base}"
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "1+1?", "solution": "\\\\boxed{2}", "answer": "2"}\n')
    ran = []
    for line in PAGE.read_text().replace("\\\n", " ").splitlines():
        command, *words = shlex.split(line) if line.startswith("    capo-ray ") else [""]
        if not command:
            continue
        words = [word.replace("paper_1_5b", name) for word in words]
        words = [model if re.match(r"model=(\./sft|runs)", word) else word for word in words]
        ran.append(words[0])
        if words[0] == "train":
            assert main([*words, "--dry-run", f"data.path={problems}"]) == 0
        elif words[0] == "sft":
            taught = read_config([f"model.path={choice}" if "model.path" in w else w for w in words[1:]])
            assert (taught.learner.lr, taught.batch_size) == (1e-5, 80)  # the paper's
            framed = ("chat_template", "system_prompt", "dtype")  # as the run that goes on from there
            assert [getattr(taught.model, k) for k in framed] == [getattr(preset(name).model, k) for k in framed]
        else:
            config = compose_eval(words[1 : words.index("--compare")] if "--compare" in words else words[1:])
            assert config.model.path == preset(name).model.path and config.engine.num_gpus == 1
            assert (config.eval.num_samples, config.eval.temperature) == (3, 0)
            assert read_suites(config)
    assert ran == ["train", "sft", "train", "train", "train", "eval", "eval", "eval"]


def test_groups_without_credit_are_replaced_where_the_paper_does_so() -> None:
    replacing = {name for name in list_choices("credit") if compose_train([f"credit={name}"]).stream.replace_creditless}
    assert replacing == {"dapo", "cliff"}
    assert not preset("paper_7b").stream.replace_creditless


# What the papers and the authors' scripts say of KL and of passes over a batch; docs/deviations.md has the sources.
OWN_KL_AND_PASSES: dict[str, tuple[float, int]] = {
    "capo": (0.01, 4),
    "capo_paper": (0.01, 4),
    "grpo_genorm": (0.01, 4),
    "grpo": (0.04, 1),
    "dr_grpo": (0, 1),
    "reinforce_pp": (1e-5, 1),
    "dapo": (0, 4),
    "gspo": (0, 4),
    "cispo": (0, 4),
    "pure": (1e-3, 1),
    "prime": (0, 1),
    "vineppo": (1e-4, 2),
    "istar": (0, 2),
    "cliff": (0, 1),
    "etpo": (0.01, 4),
}


def test_a_method_has_the_kl_and_the_passes_of_its_own_source() -> None:
    for name, own in OWN_KL_AND_PASSES.items():
        config = compose_train([f"credit={name}"])
        assert (config.loss.kl_coef, config.learner.num_epochs) == own, name


BASELINES = ("grpo", "grpo_genorm", "pure", "cliff", "dr_grpo")


@pytest.mark.parametrize("experiment", list_choices("experiment"))
def test_beside_an_experiment_a_baseline_has_its_kl_and_passes(experiment: str) -> None:
    """So that `credit=` changes the method and no more: how critics are asked, and what is a step, stay too."""
    own, *others = [preset(experiment, *given) for given in ([], *([f"credit={name}"] for name in BASELINES))]
    of_a_method = {"credit": ..., "loss": {"aggregation", "clip_low", "clip_high"}, "stream": {"replace_creditless"}}
    for config in others:
        assert config.model_dump(exclude=of_a_method) == own.model_dump(exclude=of_a_method), config.credit.method


def test_the_papers_qwen_runs_begin_at_base_models_and_its_llama_runs_at_instruct_models() -> None:
    found = {name: preset(name).model.path for name in OF_THE_PAPER}
    assert found == {
        "paper_1_5b": "Qwen/Qwen2.5-1.5B",
        "paper_7b": "Qwen/Qwen2.5-7B",
        "paper_llama_1b": "meta-llama/Llama-3.2-1B-Instruct",
        "paper_llama_3b": "meta-llama/Llama-3.2-3B-Instruct",
    }
    tuned = preset("paper_1_5b", "model=./sft-1.5b").model
    assert tuned == preset("paper_1_5b").model.model_copy(update={"path": "./sft-1.5b"})


@pytest.mark.parametrize("name", sorted(OF_THE_PAPER))
def test_all_rows_of_the_paper_are_trained_with_its_format_reward(name: str) -> None:
    head = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    for row in ("grpo", "grpo_genorm"):
        assert re.search(rf"credit={row}\s(#\s)?credit\.w_format=0\.2", head)
        credit: Any = preset(name, f"credit={row}", "credit.w_format=0.2").credit
        own: Any = preset(name).credit
        assert credit.w_format == own.w_format == 0.2


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_preset_on_smaller_gpus_is_refused_by_memory(name: str) -> None:
    with pytest.raises(RunFailed, match="of memory"):
        refuse_misfit(preset(name, "cluster.gpu_memory_gib=24"))
    with pytest.raises(RunFailed, match=r"expected .* GPUs for this run's actors"):
        refuse_misfit(preset(name, "cluster.num_nodes=1", "cluster.gpus_per_node=5"))


@pytest.mark.parametrize("name", PAPER)
def test_no_tier_of_a_paper_preset_waits_that_could_be_smaller(name: str) -> None:
    config = preset(name)
    smallest = {
        "rollout": config.engine.num_workers == 1,
        "critic": config.critic.num_workers == 1,
        "learner": config.learner.num_ranks == 1,
    }
    tiers = estimate_pace(config)
    assert {tier.role for tier in tiers} == set(smallest)
    for tier in tiers:
        assert tier.idle_frac <= 0.3 or smallest[tier.role], tier
    busy = sum(t.gpus * (1 - t.idle_frac) for t in tiers) / sum(t.gpus for t in tiers)
    assert busy > 0.7


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_preset_has_what_the_paper_says_of_every_size(name: str) -> None:
    config = preset(name)
    credit: Any = config.credit
    critic, loss = config.critic, config.loss
    assert (credit.method, credit.w_whole, credit.w_process) == ("capo", 2, 1)
    assert (critic.num_votes, critic.temperature, critic.top_p, critic.max_tokens) == (4, 0.7, 0.9, 2048)
    assert (config.rollout.group_size, config.learner.groups_per_batch, config.learner.num_epochs) == (16, 12, 4)
    assert (config.rollout.temperature, config.rollout.top_p, config.run.eval_temperature) == (0.7, 0.9, 0)
    assert loss.kl_coef == 0.01
    assert config.model.dtype == critic.dtype == "bfloat16"
    assert config.learner.gradient_checkpointing and config.learner.num_threads == 8
    assert "# Not as in the paper:" in (conf_dir() / "experiment" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", sorted(OF_THE_PAPER))
def test_critic_vote_and_learning_rate_are_those_of_the_size(name: str) -> None:
    config = preset(name)
    credit: Any = config.credit
    assert (config.critic.model, credit.vote, config.learner.lr) == OF_THE_PAPER[name]
    assert preset(name, "credit=grpo").credit.method == "grpo"  # the baseline, everything else the same


def test_a_context_of_a_known_model_is_held_against_its_positions(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert main(["train", "--dry-run", "model=qwen2_5_math_1_5b"]) == 0
    assert main(["train", "--dry-run", "model=qwen2_5_math_1_5b", "model.max_model_len=4097"]) == 1


def test_a_try_of_the_endpoint_lasts_as_long_as_the_votes_that_it_asks_for() -> None:
    """2048 tokens at the 30 tokens/s of a loaded 72B server are 68 s."""
    config = compose_train(["critic=endpoint", "critic.endpoint.base_url=http://host", "critic.endpoint.model=m"])
    assert config.critic.endpoint.request_deadline_s >= 2 * config.critic.max_tokens / 30
    assert config.critic.deadline_s >= config.critic.endpoint.request_deadline_s


def test_a_real_model_on_word_problems_starts_from_the_supervised_stage_of_its_make_target(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(ROOT / "capo_ray" / "assets" / "novice-policy")  # any with layers for adapters
    assert main(["train", "experiment=language", f"model.path={model}", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert 'data.kind="words"' in shown
    assert "critic            1    0.5     0  calculator" in shown
    grpo = preset("language", "credit=grpo")
    assert (grpo.credit.method, grpo.steps.segmenter, grpo.data.kind) == ("grpo", "newline", "words")
    # The recipe of the target is a configuration of the supervised stage, and its model is where the run looks.
    done = subprocess.run(
        ["make", "-n", "-o", "install", "train-language"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    keys = shlex.split(done.replace("\\\n", " ").partition("capo-ray sft")[2].partition("\n")[0])
    amx = "amx_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else False
    assert f"model.dtype={'bfloat16' if amx else 'float32'}" in keys
    assert done.count(keys[1]) == 2, "the run computes in what its model was taught in"
    assert preset("language").model.dtype == "float32", "which is right on every processor"
    assert read_config([key if "model.path" not in key else f"model.path={model}" for key in keys]).data.kind == "words"
    assert f"out={preset('language').model.path}" in keys
