"""The command line of `capo-ray eval` (and, with `solve_settings`, of `solve`) becomes one configuration, its suites,
and the directory of its responses.

model=CHOICE | DIR | hub name    as for train; a chat template is used where the model has one
model=RUN                        the run's newest whole checkpoint, asked as the run asked its policy
model=EVALUATION, resume=…       that evaluation again: what is missing of it is asked for
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from capo_ray.checkpoint import read_settings, write_settings
from capo_ray.cli.compose import _compose_choices, _sort, compose_keys, conf_dir, list_choices
from capo_ray.cli.export import find_checkpoint
from capo_ray.cli.models import find_model, read_facts
from capo_ray.cli.overrides import Override, Setting
from capo_ray.cli.schema import ConfigError, as_sentence, keys_of
from capo_ray.cli.useless import refuse_keys
from capo_ray.config import TrainConfig
from capo_ray.config.base import Idle, flat_keys
from capo_ray.config.evaluation import BenchConfig, EvalConfig, Suite
from capo_ray.config.shipped import SHIPPED
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import CONFIG_FILE, POLICY_DIR, RESPONSES_FILE

GROUPS = ("model", "engine", "cluster", "eval")
MAX_LEN = 4096
"""Of prompt and response, where neither a choice nor a key says it and the model holds as much."""
MAY_CHANGE = (
    "suite",
    "resume",
    "run.dir",
    "run.name",
    "eval.num_samples",
    "eval.greedy",
    "eval.limit",
    "eval.path",
    "rollout.deadline_s",
)
"""Of an evaluation that goes on: none changes what an answered question was."""
FREE = ("engine.", "cluster.", "model.", "endpoint.")
"""Beside them; `model.` is compared apart, and who serves the model, if anybody, is as free as the engines."""
OF_THE_RUN = ("model", "engine", "verifier", "cluster")


def compose_eval(overrides: Sequence[Override]) -> EvalConfig:
    """The configuration that overrides ask for; raises `ConfigError` with one sentence otherwise."""
    choices, settings = _sort(overrides, GROUPS)
    for setting in settings:
        _refuse_of_training(setting.key)
    base, settings = base_of(choices, settings)
    config = compose_keys(EvalConfig, settings, base)
    refuse_settings(config, [s.key for s in settings])
    return config


def refuse_settings(config: BenchConfig, given: Sequence[str]) -> None:
    """Raise for a key that no suite reads, or that would change what was asked already."""
    _refuse_of_suites(config, given)
    if config.resume:
        _refuse_changes(Path(config.resume), config)


def _refuse_of_suites(config: BenchConfig, given: Sequence[str]) -> None:
    """Raise for a key that no suite reads."""
    if not config.suite or not any(key.startswith(("data.answer_marker", "verifier.")) for key in given):
        return
    suites = read_suites(config).values()
    options, compared = all(suite.options for suite in suites), all(suite.kind for suite in suites)
    verdicts = ("verifier.kind", "verifier.path", "verifier.tolerance")
    rules = (
        Idle(("data.answer_marker",), options, "with multiple choice; remove it"),
        Idle(verdicts, compared, "with suites that say how their answers are compared; remove it"),
    )
    refuse_keys([("", rule) for rule in rules], given)


def _refuse_of_training(key: str) -> None:
    """Raise for a key that only a training run has."""
    known, instead = keys_of(EvalConfig), f"eval.{key.rpartition('.')[2]}"
    if key in keys_of(TrainConfig) and key not in known:
        cure = f"set {instead}" if instead in known else "remove it"
        raise ConfigError(f"{key} has no effect in an evaluation, which trains nothing; {cure}")


def base_of(
    choices: dict[str, str], settings: list[Setting], command: str = "eval"
) -> tuple[dict[str, Any], list[Setting]]:
    """The tree under the settings, and those that are left to put into it."""
    model, resume = (_directory(settings, key) for key in ("model.path", "resume"))
    if model and is_evaluation(Path(model)):
        resume, settings = model, [s for s in settings if s.key not in ("model.path", "resume")]
    if resume:
        if not is_evaluation(Path(resume)):
            raise ConfigError(f"resume: expected the directory of an evaluation, got {resume}")
        tree = read_settings(Path(resume) / CONFIG_FILE)
        if (own := "solve" if "search" in tree else "eval") != command:
            raise ConfigError(f"resume: {resume} was made by capo-ray {own}; go on with capo-ray {own} resume={resume}")
        settings = [s for s in settings if s.key != "resume"]
        tree |= {"resume": resume} | {k: v for k, v in _compose_choices(choices, command).items() if k in choices}
    else:
        tree = _compose_choices(choices, command)
        if model and (run := Path(model) / CONFIG_FILE).is_file():
            tree, settings = _of_run(tree, run.parent), [s for s in settings if s.key != "model.path"]
        elif "model" not in choices and model not in ("", *SHIPPED["policy"]):
            tree["model"]["max_model_len"] = min(_positions(model), MAX_LEN)
    if suite := next((s.text for s in reversed(settings) if s.key == "suite"), ""):
        tree["suite"] = [name.strip(" '") for name in suite.strip("[]").split(",") if name.strip(" '")]
    return tree, [s for s in settings if s.key != "suite"]


def _directory(settings: Sequence[Setting], key: str) -> str:
    """The last value of a key that may name a directory, `~` written out; empty where it is not given."""
    return os.path.expanduser(next((s.text for s in reversed(settings) if s.key == key), ""))


def _of_run(tree: dict[str, Any], run: Path) -> dict[str, Any]:
    """The tree with the sections and the newest weights of a training run."""
    own = read_settings(run / CONFIG_FILE)
    weights = find_checkpoint(run, None) / POLICY_DIR
    if not weights.is_dir():
        raise ConfigError(f"model: expected the policy's weights in {weights}, found none; give another run")
    if (played := own.get("environment", {}).get("kind", "none")) != "none":
        print(f"{run}: its policy played environment={played}; here it is asked once, without it", file=sys.stderr)
    tree |= {name: own[name] for name in OF_THE_RUN}
    tree["model"]["path"] = str(weights)
    tree["rollout"] = {"max_response_tokens": own["rollout"]["max_response_tokens"]}
    return tree


def _positions(model: str) -> int:
    folder = find_model(model, "policy")
    if folder is None:
        return MAX_LEN
    return read_facts(folder, "model").max_positions or MAX_LEN


def is_evaluation(path: Path) -> bool:
    """Whether a directory holds an evaluation."""
    return (path / RESPONSES_FILE).is_file() and (path / CONFIG_FILE).is_file()


def differences(evaluation: Path, config: BenchConfig) -> dict[str, Any]:
    """The keys that change what a response is asked, where an evaluation had them otherwise, with its values."""
    before = flat_keys(type(config).model_validate(read_settings(evaluation / CONFIG_FILE)).model_dump())
    return {
        key: before.get(key)
        for key, value in flat_keys(config.model_dump()).items()
        if before.get(key) != value and key not in MAY_CHANGE and (key == "endpoint.model" or not key.startswith(FREE))
    }


def _refuse_changes(path: Path, config: BenchConfig) -> None:
    """Raise where what is asked is not what the responses of an evaluation were asked."""
    now = flat_keys(config.model_dump())
    before = type(config).model_validate(read_settings(path / CONFIG_FILE))
    changed = differences(path, config)
    changed |= {
        key: value for key, value in flat_keys({"model": before.model.model_dump()}).items() if now[key] != value
    }
    for key, value in changed.items():
        raise ConfigError(
            f"{path} was asked with {key}={value}, got {now[key]}; remove it, or begin anew with another run.name"
        )


def read_suites(config: BenchConfig) -> dict[str, Suite]:
    """The declared suites by name; raises where none is asked for or one is unknown."""
    known = list_choices("suite")
    if not config.suite:
        raise ConfigError(f"expected suite=NAME, several as suite=gsm8k,math500, got none. Suites: {', '.join(known)}")
    found = {}
    for name in config.suite:
        own = Path(name).expanduser()
        if name not in known and not (own.suffix == ".yaml" and own.is_file()):
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ConfigError(f"suite={name} is no suite{hint} Suites: {', '.join(known)}, or a file like theirs")
        path = conf_dir() / "suite" / f"{name}.yaml" if name in known else own
        found[path.stem] = _read_suite(path)
    return found


def _read_suite(path: Path) -> Suite:
    import yaml

    try:
        return Suite.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, OSError) as error:
        why = as_sentence(error, lambda key: ConfigError(f"{key} is no key of a suite")) if isinstance(
            error, ValidationError
        ) else " ".join(str(error).split())  # fmt: skip
        raise ConfigError(f"suite={path}: {why}") from None


def find_directory(config: BenchConfig) -> Path:
    """The directory of the evaluation, which exists or can be made; raises where something else is in it."""
    if config.resume:
        return Path(config.resume).expanduser().resolve()
    model = Path(config.model.path)
    short = re.sub(r"[^\w.-]+", "-", "-".join(model.parts[-2:]) if model.is_absolute() else str(model))
    name = config.run.name or f"{time.strftime('%Y%m%d-%H%M%S')}-{short}"
    path = Path(config.run.dir).expanduser().resolve() / name
    if is_evaluation(path):
        _refuse_changes(path, config)
    elif path.is_dir() and any(path.iterdir()):
        raise RunFailed(f"run.name: {path} already holds something else; choose another run.name")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"run.dir: expected to write in {path}, got: {error.strerror}; choose another") from error
    return path


def write_config(path: Path, config: BenchConfig) -> None:
    """Make a directory that of an evaluation: what is asked now stands in it."""
    write_settings(path / CONFIG_FILE, config.model_copy(update={"resume": ""}).model_dump(mode="json"))
    (path / RESPONSES_FILE).touch()
