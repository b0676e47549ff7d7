"""A command line's overrides become one validated `TrainConfig`.

    credit=capo            a choice: conf/credit/capo.yaml, composed by Hydra
    model=/any/directory   no such choice, so model.path (critic=… is critic.model)
    learner.lr=1e-5        a key: no `+` needed, since the pydantic models know every key
    resume=RUN             the base is RUN's own configuration in place of the choices
    resume=auto            the run that run.name names where it has begun, else a new one of that name

Invariant: nothing in a value is ever looked up or evaluated: `${…}` is refused, not resolved, so that a
configuration cannot draw a secret of the environment into a run directory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

import capo_ray
from capo_ray.checkpoint import read_settings
from capo_ray.cli.auto import settle_auto
from capo_ray.cli.overrides import Override, Setting, new_keys, put, split, value_of
from capo_ray.cli.schema import (
    ConfigError,
    as_sentence,
    is_mapping,
    keys_of,
    refuse_interpolation,
    refuse_key,
    refuse_unknown,
    takes_text,
    train_keys,
)
from capo_ray.cli.useless import refuse_useless
from capo_ray.config import FAMILIES, TrainConfig
from capo_ray.config.base import Section, flat_keys
from capo_ray.config.shipped import SHIPPED
from capo_ray.config.steps import move_older
from capo_ray.runs.layout import CONFIG_FILE

PATH_KEYS = {"model": "model.path", "critic": "critic.model"}
ROLES = {"model": "policy", "critic": "critic"}
ModelT = TypeVar("ModelT", bound=Section)
GROUPS = (
    "credit",
    "steps",
    "environment",
    "model",
    "data",
    "critic",
    "engine",
    "learner",
    "cluster",
    "tracking",
    "experiment",
)


def compose_train(overrides: Sequence[Override], *, judges: bool = False) -> TrainConfig:
    """The configuration that overrides ask for; raises `ConfigError` with one sentence otherwise.

    `judges`: critics are asked whatever the credit method reads.
    """
    overrides = settle_auto(overrides, compose_train)
    choices, settings = _sort(overrides)
    run = next((s.text for s in settings if s.key == "resume"), "")
    tree = _read_run(run, choices) if run else _compose_choices(choices)
    before = deepcopy(tree)
    kinds = _kinds(tree, settings)
    _settle(tree, settings, train_keys(kinds), lambda s: _no_group(s) or refuse_unknown(s.key, kinds))
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise as_sentence(error, lambda key: refuse_unknown(key, kinds)) from None
    refuse_useless(config, new_keys(settings, before, train_keys(kinds)) + [f"{g}=" for g in choices], judges)
    return config


def overruled(overrides: Sequence[Override]) -> list[str]:
    """A line for each choice of which the experiment, composed last, sets keys otherwise that are not given."""
    choices, settings = _sort(overrides)
    rest = {group: name for group, name in choices.items() if group != "experiment"}
    if rest == choices:
        return []
    given = {setting.key for setting in settings}
    default, apart, whole = (flat_keys(_compose_choices(some)) for some in ({}, rest, choices))
    lines = []
    for group, name in rest.items():
        own = flat_keys(_compose_choices({group: name}))
        sets = [key for key, value in own.items() if key not in given and (key not in default or default[key] != value)]
        lost = [f"{k}={whole.get(k)} (not {own[k]})" for k in sets if apart.get(k) == own[k] != whole.get(k)]
        if lost:
            whose = f"experiment={choices['experiment']}, not {group}={name},"
            lines.append(f"{whose} sets {', '.join(lost)}; give a key itself for another value")
    return lines


def compose_keys(
    model: type[ModelT],
    overrides: Sequence[Override],
    base: dict[str, Any],
    keys: Mapping[str, FieldInfo] | None = None,
    choices: Sequence[str] = (),
) -> ModelT:
    """`model` of key=value overrides over `base`; `ConfigError` as in `compose_train`.

    `keys` are its keys, where it has sections of several kinds; `choices`: the groups that were chosen for the base.
    """
    settings = [split(text) for text in overrides]
    settings = [replace(s, key=PATH_KEYS[s.key]) if s.key in PATH_KEYS else s for s in settings]  # model=DIRECTORY
    if run := next((s.text for s in settings if s.key == "resume"), ""):
        if base:
            raise ConfigError(f"resume={run} goes on with that run's own settings; remove --recipe")
        base = _read_run(run, {}, "sft")
    tree, known = deepcopy(base), keys or keys_of(model)
    _settle(tree, settings, known, lambda s: refuse_key(s.key, known, model))
    try:
        config = model.model_validate(tree)
    except ValidationError as error:
        raise as_sentence(error, lambda key: refuse_key(key, known, model)) from None
    refuse_useless(config, new_keys(settings, base, known) + [f"{group}=" for group in choices])
    return config


def _settle(
    tree: dict[str, Any],
    settings: Sequence[Setting],
    keys: Mapping[str, FieldInfo],
    refuse: Callable[[Setting], ConfigError],
) -> None:
    """Put the settings into the tree; raise where one is no key, or where anything in the tree asks to be looked up."""
    for setting in settings:
        parent, _, name = setting.key.rpartition(".")
        if name and parent in keys and is_mapping(keys[parent]):
            put(tree, setting.key, value_of(setting, False))
        elif setting.key in keys:
            put(tree, setting.key, value_of(setting, takes_text(keys[setting.key])))
        else:
            raise refuse(setting)
    refuse_interpolation(tree, "")


def conf_dir() -> Path:
    """The directory of choices: inside an installed package, or beside it in a checkout."""
    package = Path(capo_ray.__file__).parent
    for path in (package / "_conf", package.parent / "conf"):
        if (path / "train.yaml").is_file():
            return path.resolve()
    raise ConfigError(f"expected the choices in {package / '_conf'}, found none; install capo-ray again")


def list_choices(group: str) -> list[str]:
    """The choices of a group, sorted; a credit method or segmenter without a file of its own is a choice too."""
    return sorted({path.stem for path in (conf_dir() / group).glob("*.yaml")} | set(FAMILIES.get(group, ())))


def _sort(overrides: Sequence[Override], groups: Sequence[str] = GROUPS) -> tuple[dict[str, str], list[Setting]]:
    """The choices of groups, and the settings of keys, in the order given."""
    choices: dict[str, str] = {}
    settings: list[Setting] = []
    for text in overrides:
        setting = split(text, " (as credit.vote=union) or group=choice (as credit=grpo)")
        key, value = setting.key, setting.text
        if key not in groups:
            settings.append(setting)
        elif key in ("steps", "environment") and value in FAMILIES[key]:  # it is one key, and has no preset
            settings.append(replace(setting, key=f"{key}.{FAMILIES[key].tag}"))
        elif value in list_choices(key):
            choices[key] = value
        elif key in PATH_KEYS and (value in SHIPPED[ROLES[key]] or "/" in value or Path(value).is_dir()):
            settings.append(replace(setting, key=PATH_KEYS[key]))
        else:
            raise _no_choice(key, value)
    return choices, settings


def _no_group(setting: Setting) -> ConfigError | None:
    """The error for a group that is nearly spelt, with a choice that it has; None for anything else."""
    near = get_close_matches(setting.key, GROUPS, n=1, cutoff=0.75)
    if not near or setting.text not in list_choices(near[0]):
        return None
    return ConfigError(f"{setting.key} is no group of choices; did you mean {near[0]}={setting.text}?")


def _no_choice(group: str, value: str) -> ConfigError:
    if group in FAMILIES and value in FAMILIES[group].broken:
        return ConfigError(FAMILIES[group].broken[value])
    choices = list_choices(group)
    near = get_close_matches(value, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {group}={near[0]}?" if near else "."
    path = " or a model directory or hub name (organisation/name)" if group in PATH_KEYS else ""
    if group == "critic" and value in ("none", "null", ""):
        path += "; none is needed by a method without critiques, as credit=grpo"
    several = " (one value per key: several runs are several commands)" if "," in value else ""
    return ConfigError(f"{group}={value} is no choice{several}{hint} Choices: {', '.join(choices) or 'none'}{path}")


def _compose_choices(choices: dict[str, str], root: str = "train") -> dict[str, Any]:
    """The tree that Hydra composes of the default choices of `conf/{root}.yaml` and the given ones."""
    folder = conf_dir()
    asked = tuple(f"{group}={name}" for group, name in choices.items() if (folder / group / f"{name}.yaml").is_file())
    result = deepcopy(_composed(folder, asked, root))
    if "credit" in choices and f"credit={choices['credit']}" not in asked:
        result["credit"] = {"method": choices["credit"]}
    return result


@cache
def _composed(folder: Path, asked: tuple[str, ...], root: str) -> dict[str, Any]:
    """Hydra's tree, kept: it costs 65 ms, and whoever compares many settings composes few choices many times."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
            tree = OmegaConf.to_container(compose(config_name=root, overrides=list(asked)), resolve=False)
    except HydraException as error:
        raise ConfigError(f"the choices {list(asked)} do not compose: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"expected a mapping in {folder / f'{root}.yaml'}, got {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}


def _read_run(run: str, choices: dict[str, str], command: str = "train") -> dict[str, Any]:
    """The configuration of an earlier run, as the base of its resumption."""
    if choices:
        given = " ".join(f"{group}={name}" for group, name in choices.items())
        raise ConfigError(f"resume={run} goes on with that run's own choices; remove {given}")
    path = Path(run).expanduser() / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"resume: expected a run directory with config.yaml, got {run}")
    tree = read_settings(path)
    if tree.get("weights", {}).get("transport") == "shared_memory":
        del tree["weights"]["transport"]  # the only value that there was in earlier versions
    own = "train" if "credit" in tree else "sft"
    if own != command:
        raise ConfigError(f"resume={run} is a run of capo-ray {own}: go on with capo-ray {own} resume={run}")
    return move_older(tree)


def _kinds(tree: dict[str, Any], settings: Sequence[Setting]) -> dict[str, str]:
    """The chosen kind of each section that has several, made explicit in the tree."""
    return {section: _kind(section, tree, settings) for section in FAMILIES}


def _kind(name: str, tree: dict[str, Any], settings: Sequence[Setting]) -> str:
    tag, section = FAMILIES[name].tag, tree.setdefault(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{name}: expected a section with {tag}=…, got {section!r}")
    before = section.get(tag, getattr(TrainConfig.model_fields[name].default, tag))
    named = [s.text for s in settings if s.key == f"{name}.{tag}"]
    kind = str(named[-1] if named else before)
    if kind not in FAMILIES[name] or kind in FAMILIES[name].broken:
        raise _no_choice(name, kind)
    if kind != before and name == "credit":
        raise ConfigError(f"credit.method={kind} would keep another method's preset; write credit={kind}")
    known = section if kind == before else FAMILIES[name][kind].model_fields  # keys of the one before go with it
    tree[name] = {key: value for key, value in section.items() if key in known} | {tag: kind}
    return kind
