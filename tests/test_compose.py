"""Overrides become one validated configuration, or one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.checkpoint import write_settings
from capo_ray.cli.compose import GROUPS, compose_train, conf_dir, list_choices, overruled
from capo_ray.cli.eval_settings import compose_eval
from capo_ray.cli.overrides import Setting, read_file, value_of
from capo_ray.cli.schema import ELSEWHERE, ConfigError, train_keys
from capo_ray.cli.sft import read_config
from capo_ray.cli.solve_settings import compose_solve
from capo_ray.config import CREDIT_METHODS, TrainConfig
from capo_ray.config.steps import EntropySteps
from capo_ray.place.rundir import own_settings
from capo_ray.protocols import RunFailed
from tests.examples import examples


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose_train(overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_no_overrides_give_the_defaults_of_the_models() -> None:
    assert compose_train([]) == TrainConfig()


def test_the_main_job_has_a_credit_of_its_own_and_any_other_in_its_place() -> None:
    credit = compose_train(["experiment=novice"]).credit
    assert (credit.method, credit.vote, credit.w_process) == ("capo", "greedy", 1.0)
    assert compose_train(["experiment=novice", "credit=capo"]).credit == TrainConfig().credit
    assert compose_train(["experiment=novice", "credit=grpo"]).credit.method == "grpo"


def test_a_key_needs_no_plus_and_a_plus_does_no_harm() -> None:
    plain = compose_train(["learner.lr=1e-5"])
    assert plain.learner.lr == 1e-5
    assert plain == compose_train(["+learner.lr=1e-5"]) == compose_train(["++learner.lr=1e-5"])


def test_the_overrides_of_the_manual_compose() -> None:
    assert compose_train(["credit=grpo"]).credit.method == "grpo"
    config = compose_train(["credit=capo", "credit.vote=intersection", "critic.num_votes=8"])
    assert (config.credit.vote, config.critic.num_votes) == ("intersection", 8)  # type: ignore[union-attr]
    config = compose_train(["data=gsm8k", "data.path=train.jsonl"])
    assert (config.data.kind, config.data.path, config.data.answer_marker) == ("files", "train.jsonl", "####")


@pytest.mark.slow
@pytest.mark.parametrize("method", list_choices("credit"))
def test_every_listed_credit_choice_composes(method: str) -> None:
    assert compose_train([f"credit={method}"]).credit.method in CREDIT_METHODS


@pytest.mark.slow
@pytest.mark.parametrize(
    "group, choice",
    [(group, choice) for group in GROUPS if group not in ("credit", "data") for choice in list_choices(group)],
)
def test_every_other_choice_composes(group: str, choice: str) -> None:
    compose_train([f"{group}={choice}"])


def test_no_experiment_takes_back_which_model_or_critic_was_chosen() -> None:
    assert compose_train(["experiment=discovery", "model=novice"]).model.path == "novice"
    for path in (conf_dir() / "experiment").glob("*.yaml"):
        tree = yaml.safe_load(path.read_text())
        found = {f"{group}.{key}" for group in ("model", "critic", "data") for key in tree.get(group, {})}
        assert not found & {"model.path", "critic.model", "critic.backend", "data.kind", "data.path"}, path


def test_what_an_experiment_sets_over_a_choice_is_told_unless_the_key_is_given() -> None:
    words = ["experiment=paper_1_5b", "learner=gpu", "credit=grpo"]
    told = [
        "experiment=paper_1_5b, not learner=gpu, sets learner.num_ranks=1 (not 2); give a key itself for another value",
        "experiment=paper_1_5b, not credit=grpo, sets loss.kl_coef=0.01 (not 0.04), learner.num_epochs=4 (not 1); "
        "give a key itself for another value",
    ]
    assert overruled(words) == told
    assert overruled([*words, "learner.num_ranks=2"]) == told[1:]
    assert overruled(words[:1]) == overruled(words[1:]) == []


def test_a_directory_or_hub_name_stands_for_the_model_and_the_critic() -> None:
    config = compose_train(["model=/any/directory", "critic=org/judge"])
    assert (config.model.path, config.critic.model) == ("/any/directory", "org/judge")
    assert config.critic.rubric == TrainConfig().critic.rubric


def test_the_shipped_models_have_a_name_in_both_roles() -> None:
    assert compose_train(["model=laptop", "critic=laptop"]) == TrainConfig()


def test_a_typo_in_a_key_is_answered_with_the_nearest_key_and_its_siblings() -> None:
    sentence = refusal("credit.vot=union")
    assert "credit.vot is no key of credit=capo; did you mean credit.vote?" in sentence
    assert "quorum" in sentence
    assert "did you mean learner.lr?" in refusal("lerner.lr=1")
    assert "did you mean credit.vote?" in refusal("vote=union")
    assert "did you mean learner.lr?" in refusal("learner.learning_rate=1e-5")  # as TRL calls it
    assert "did you mean rollout.group_size?" in refusal("num_generations=8")
    assert "did you mean credit=grpo?" in refusal("credits=grpo")


def test_the_names_of_other_trainers_lead_to_keys_that_exist() -> None:
    assert set(ELSEWHERE.values()) <= set(train_keys({"credit": "capo", "steps": "blank_line"}))


def test_several_values_are_told_how_they_are_written() -> None:
    for text in ("(0.9,0.99)", "0.9,0.99"):
        assert "written [0.9,0.99]" in refusal(f"learner.betas={text}")
    assert compose_train(["learner.betas=[0.9,0.99]"]).learner.betas == (0.9, 0.99)


def test_a_fraction_where_a_whole_number_is_wanted_is_told_plainly() -> None:
    assert "run.num_updates: expected a whole number, got 4.5" in refusal("run.num_updates=4.5")


@pytest.mark.parametrize("override", ["learner.lr=inf", "credit.w_whole=inf", "loss.clip_high=nan"])
def test_an_infinite_number_is_refused(override: str) -> None:
    assert refusal(override).startswith(f"{override.partition('=')[0]}: expected ")


def test_a_typo_in_a_choice_is_answered_with_the_nearest_choice() -> None:
    assert "did you mean credit=grpo?" in refusal("credit=grpoo")
    assert "did you mean model=qwen2_5_1_5b?" in refusal("model=qwen2_5_15b")


def test_another_methods_key_is_unknown_to_this_one() -> None:
    assert "credit.vote is no key of credit=grpo" in refusal("credit=grpo", "credit.vote=union")


@pytest.mark.parametrize("method", ["istar", "etpo"])
def test_rewards_against_the_samplers_logprobs_need_the_whole_distribution(method: str) -> None:
    assert "rollout.top_p must be 1 (got 0.9)" in refusal(
        f"credit={method}", "rollout.top_p=0.9", "loss.behaviour=recompute"
    )
    compose_train(["credit=prime", "rollout.top_p=0.9", "loss.behaviour=recompute"])


def test_wrong_types_and_ranges_say_what_was_expected_and_got() -> None:
    assert refusal("learner.lr=fast") == "learner.lr: expected a number, got 'fast'"
    assert refusal("learner.num_ranks=0") == "learner.num_ranks: expected greater than or equal to 1, got 0"
    assert "credit.vote: expected 'intersection', 'majority'" in refusal("credit.vote=most")
    assert "credit.quorum must be <= critic.num_votes (got 9 > 4)" in refusal("credit.quorum=9")


@pytest.mark.parametrize("key", ["run.name", "learner.lr", "model"])
def test_nothing_is_looked_up_in_the_environment(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "0.5")
    assert "0.5" not in refusal(f"{key}=${{oc.env:A_SECRET}}/x")


@pytest.mark.parametrize("override", ["learner.lr=1,2", "credit=capo,grpo", "learner.lr=range(1,5)"])
def test_several_values_are_several_commands(override: str) -> None:
    assert "several runs are several commands" in refusal(override)


@pytest.mark.parametrize(
    "override", ["critic", "~critic", "=1", "hydra.run.dir=/x", "model@x=laptop", "hydra/launcher=x"]
)
def test_what_is_no_override_is_refused(override: str) -> None:
    refusal(override)


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda t: t[0] not in "'\""))
@settings(max_examples=examples(50))
def test_a_text_value_is_taken_as_it_is_written(text: str) -> None:
    setting = Setting("model.system_prompt", text)
    if "${" in text:
        with pytest.raises(ConfigError):
            value_of(setting, literal=True)
    else:
        assert value_of(setting, literal=True) == text


def test_quotes_around_a_text_are_the_shells_and_are_taken_off() -> None:
    assert compose_train(["run.name='a b'"]).run.name == "a b"
    assert compose_train(["run.name=2024"]).run.name == "2024"


def test_later_overrides_win_over_choices_wherever_they_stand() -> None:
    assert compose_train(["learner.num_ranks=3", "learner=gpu"]).learner.num_ranks == 3


def test_resume_starts_from_the_runs_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compose_train(["credit=grpo", "learner.lr=3e-5", "run.num_updates=5"])
    write_settings(tmp_path / "config.yaml", first.model_dump(mode="json"))
    again = compose_train([f"resume={tmp_path}", "run.num_updates=9"])
    assert (again.credit.method, again.learner.lr, again.run.num_updates) == ("grpo", 3e-5, 9)
    assert again.resume == str(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert compose_train([f"resume=~/{tmp_path.name}"]).learner.lr == 3e-5
    assert "goes on with that run's own choices; remove credit=capo" in refusal(f"resume={tmp_path}", "credit=capo")
    whole = (tmp_path / "config.yaml").read_bytes()
    (tmp_path / "config.yaml").write_bytes(whole[: whole.index(b"rollout:")])
    with pytest.raises(RunFailed, match=r"config\.yaml is not as it was written: cut short"):
        compose_train([f"resume={tmp_path}"])


def test_a_run_from_before_steps_had_a_section_is_read_as_it_would_be_written_now(tmp_path: Path) -> None:
    now = compose_train(["credit=acpo", "steps.window=5", "steps.whole_blocks=false"])
    tree = now.model_dump(mode="json")
    steps = tree.pop("steps")
    own = {f"cut_{name}": steps.pop(name) for name in ("top_frac", "window", "min_tokens", "max_steps")}
    tree["credit"] |= steps | own  # as of main until November 2026
    write_settings(tmp_path / "config.yaml", tree)
    assert own_settings(tmp_path) == now
    assert compose_train([f"resume={tmp_path}"]) == now.model_copy(update={"resume": str(tmp_path)})
    resumed = compose_train([f"resume={tmp_path}", "steps=newline"])
    assert resumed.steps.model_dump() == {"segmenter": "newline", "whole_blocks": False, "thinking": "train"}
    write_settings(tmp_path / "config.yaml", tree | {"credit": tree["credit"] | {"segmenter": "newline"}})
    assert own_settings(tmp_path).steps.segmenter == "newline", "whose keys of entropy had no effect"


@pytest.mark.parametrize(
    ("old", "new"), [("segmenter=newline", "segmenter"), ("thinking=leave_out", "thinking"), ("cut_window=3", "window")]
)
def test_a_key_that_moved_to_steps_is_answered_with_its_new_name(old: str, new: str) -> None:
    assert f"is steps.{new} now; write steps.{new}=…" in refusal("credit=acpo", f"credit.{old}")


def test_steps_have_the_keys_of_their_segmenter() -> None:
    assert compose_train(["credit=acpo"]).steps == EntropySteps()
    assert compose_train(["credit=acpo", "steps=entropy", "steps.window=3"]).steps == EntropySteps(window=3)
    assert compose_train(["credit=acpo", "steps=newline"]).steps == compose_train(["steps.segmenter=newline"]).steps
    assert "steps.window is no key of steps=newline" in refusal("credit=acpo", "steps=newline", "steps.window=3")
    assert "steps=sentences is no choice; did you mean steps=sentence?" in refusal("steps=sentences")
    assert "steps=lines is no choice" in refusal("steps.segmenter=lines")
    assert refusal("steps=entropy", "steps.top_frac=0").startswith("steps.top_frac: expected")


def test_near_misses_are_answered_with_what_was_meant() -> None:
    assert "did you mean" not in refusal("trainer.foo=1")
    assert "expected true or false, got 'maybe'" in refusal("model.chat_template=maybe")
    assert "none is needed by a method without critiques, as credit=grpo" in refusal("critic=none")
    with pytest.raises(ConfigError, match=r"did you mean learner\.lr\?"):
        read_config(["learning_rat=1e-3"])
    assert read_config(["model=/a/directory"]).model.path == "/a/directory"


def test_resume_of_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "expected a run directory with config.yaml" in refusal(f"resume={tmp_path}")


def test_choices_hold_no_key_that_the_models_lack_and_no_environment_look_up() -> None:
    for path in conf_dir().rglob("*.yaml"):
        assert not re.search(r"\$\{", path.read_text()), path


def test_the_dumped_configuration_is_read_back_as_itself() -> None:
    config = compose_train(["experiment=paper_1_5b", "data=gsm8k", "data.path=x"])
    assert TrainConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_a_file_stands_under_the_overrides(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(
        "credit: grpo\nlearner:\n  lr: 1e-5\n  schedule: constant\nrun.num_updates: 7\nmodel:\n  stop_tokens: []\n"
    )
    config = compose_train([*read_file(str(own)), "run.num_updates=9"])
    assert (config.credit.method, config.learner.lr, config.run.num_updates) == ("grpo", 1e-5, 9)
    assert compose_train([*read_file(str(own)), "credit=rloo"]).credit.method == "rloo"


def test_a_whole_configuration_of_a_run_is_a_file_though_many_of_its_keys_are_idle(tmp_path: Path) -> None:
    for choice in ("credit=grpo", "credit=capo_paper", "credit=etpo"):
        once = compose_train([choice, "learner.lr=3e-5"])
        write_settings(tmp_path / "config.yaml", once.model_dump(mode="json"))
        assert compose_train(read_file(str(tmp_path / "config.yaml"))) == once


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--config: expected sections and keys in .*mine.yaml .*, got nothing"),
        ("- a\n", "--config: expected sections and keys in .*, got list"),
        ("a: [\n", "--config: expected a file of settings in YAML, got .*mine.yaml: "),
        ("lerner: {lr: 1}\n", "lerner.lr is no key; did you mean learner.lr?"),
        ("credit: grpo\ncritic: {num_votes: 8}\n", "critic.num_votes has no effect with credit=grpo"),
        ("model: {system_prompt: '${oc.env:HOME}'}\n", "model.system_prompt: expected a plain value"),
        ("!!python/object/apply:os.system ['false']\n", "--config: expected a file of settings in YAML"),
        ("learner: {lr: fast}\n", "learner.lr: expected a number, got 'fast'"),
        ("credit: {method: nope}\n", "credit=nope is no choice"),
    ],
)
def test_a_file_that_does_not_fit_is_told_in_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        compose_train(read_file(str(tmp_path / "mine.yaml")))
    with pytest.raises(ConfigError, match=r"got /nowhere\.yaml: No such file"):
        read_file("/nowhere.yaml")


def test_resume_auto_begins_a_run_and_goes_on_with_it_by_the_same_line(tmp_path: Path) -> None:
    line = ["credit=grpo", "learner.lr=3e-5", f"run.dir={tmp_path}", "run.name=one", "resume=auto"]
    first = compose_train(line)
    assert first.resume == "" and first.credit.method == "grpo" and first.run.name == "one"
    (tmp_path / "one").mkdir()
    write_settings(tmp_path / "one" / "config.yaml", first.model_dump(mode="json"))
    again = compose_train(line)
    assert again.resume == str(tmp_path / "one") and again.run.from_zero, "there is no checkpoint yet"
    (tmp_path / "one" / "checkpoints" / "v000001").mkdir(parents=True)
    again = compose_train([*line, "learner.lr=1e-5"])
    assert (again.resume, again.run.from_zero, again.learner.lr) == (str(tmp_path / "one"), False, 1e-5)
    assert again.credit.method == "grpo" and compose_train(line).learner.lr == 3e-5
    for words, sentence in (
        ([*line, "credit=capo"], r"one is a run with credit=grpo, got credit=capo; give that, or another run\.name"),
        (["resume=auto"], r"resume=auto finds its run by run\.name, which is empty"),
        ([*line, "lerner.lr=1"], r"did you mean learner\.lr"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            compose_train(words)


BUCKET = "s3://bucket/place"
KEYS_OF_PLACES = {
    compose_train: (
        "run.dir",
        "data=files data.path",
        "data=files data.path=x data.eval_path",
        "critic.store",
        "critic.canary_every=9 critic.canary_path",
        "critic.min_f1=0.5 critic.trust_file",
        "critic=endpoint critic.endpoint.key_file",
    ),
    read_config: ("run.dir", "out", "model.path=laptop data.kind=files data.path"),
    compose_eval: ("run.dir", "suite=own eval.path", "endpoint.base_url=https://h/v1 endpoint.key_file"),
    compose_solve: ("run.dir", "suite=own eval.path", "critic.store"),
}


@pytest.mark.parametrize("compose, keys", [(f, keys) for f, several in KEYS_OF_PLACES.items() for keys in several])
def test_an_address_in_place_of_a_path_is_refused(compose: Callable[[list[str]], object], keys: str) -> None:
    """Who took it would write into a directory `s3:` of the machine, which is gone with its pod."""
    with pytest.raises(ConfigError) as caught:
        compose(f"{keys}={BUCKET}".split())
    key = keys.split()[-1]
    assert str(caught.value) == (
        f"{key}: expected a path on a file system that is mounted, got the address {BUCKET}; mount what it names (on "
        "every node of a cluster) and give the path there, or copy from and to it yourself"
    )


def test_an_address_that_a_library_reads_is_taken() -> None:
    given = "data.kind=hub data.path=hf://x data.eval_path=hf://y engine.extra.download_dir=s3://x critic=endpoint"
    given += " cluster.address=ray://head:10001 critic.endpoint.base_url=http://h/v1"
    taken = compose_train(given.split())
    assert taken.data.eval_path == "hf://y"
    assert "verifier.path: expected a path on a file system" in refusal(
        "verifier.kind=custom", "verifier.path=s3://bucket/rule.py:check"
    )
