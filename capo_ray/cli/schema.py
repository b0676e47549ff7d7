"""The configuration as keys: all of `TrainConfig`, the nearest one to a typo, pydantic's errors as sentences.

Invariant: all of it is read off the pydantic models, so a key that is added there is known here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from capo_ray.config import FAMILIES, TrainConfig
from capo_ray.config.search import SEARCHES
from capo_ray.config.steps import MOVED
from capo_ray.protocols import RunFailed

# What other trainers (TRL, verl, OpenRLHF) call a key of ours, by the last word of theirs.
ELSEWHERE = {
    "learning_rate": "learner.lr",
    "lr_scheduler_type": "learner.schedule",
    "warmup_steps": "learner.warmup_updates",
    "train_batch_size": "learner.groups_per_batch",
    "batch_size": "learner.groups_per_batch",
    "ppo_epochs": "learner.num_epochs",
    "num_train_epochs": "learner.num_epochs",
    "num_iterations": "learner.num_epochs",
    "num_generations": "rollout.group_size",
    "n_samples_per_prompt": "rollout.group_size",
    "max_completion_length": "rollout.max_response_tokens",
    "max_response_length": "rollout.max_response_tokens",
    "max_new_tokens": "rollout.max_response_tokens",
    "kl_loss_coef": "loss.kl_coef",
    "init_kl_coef": "loss.kl_coef",
    "clip_ratio": "loss.clip_low",
    "epsilon": "loss.clip_low",
    "epsilon_high": "loss.clip_high",
    "max_steps": "run.num_updates",
    "total_training_steps": "run.num_updates",
    "save_steps": "run.checkpoint_every",
    "save_freq": "run.checkpoint_every",
    "eval_steps": "run.eval_every",
    "test_freq": "run.eval_every",
    "output_dir": "run.dir",
    "model_name_or_path": "model.path",
    "bf16": "model.dtype",
    "dataset_name": "data.path",
    "tensor_model_parallel_size": "engine.tensor_parallel",
    "tensor_parallel_size": "engine.tensor_parallel",
    "gpu_memory_utilization": "engine.gpu_memory_frac",
}


class ConfigError(RunFailed):
    """A refused configuration; the message is one sentence: expected, got, what to do."""


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, or None for a plain value."""
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((k for k in kinds if inspect.isclass(k) and issubclass(k, BaseModel)), None)


def keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every dotted key under a model that holds a plain value."""
    keys: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        inner = section_of(field)
        if inner is None:
            keys[prefix + name] = field
        else:
            keys.update(keys_of(inner, f"{prefix}{name}."))
    return keys


def train_keys(kinds: Mapping[str, str]) -> dict[str, FieldInfo]:
    """Every key of a training run with this kind of each section that has several."""
    keys = {key: field for key, field in keys_of(TrainConfig).items() if key.partition(".")[0] not in FAMILIES}
    for section, kind in kinds.items():
        keys |= keys_of(FAMILIES[section][kind], f"{section}.")
    return keys


def is_mapping(field: FieldInfo) -> bool:
    """Whether a field holds names of the user's choice, each set as `key.name=value`."""
    return get_origin(field.annotation) is dict


def takes_text(field: FieldInfo) -> bool:
    """Whether the values of a field are texts, to be taken as they are written."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) is not None else (field.annotation,)
    return all(kind is str or kind is type(None) or isinstance(kind, str) for kind in kinds)


def refuse_unknown(key: str, kinds: Mapping[str, str]) -> ConfigError:
    """The error for a key that no run with these kinds of sections has: where it went, or what is near."""
    if moved := new_name(key):
        return ConfigError(f"{key} is {moved} now; write {moved}=…")
    if key == "rollout.search" or key.partition(".")[0] == "search":
        return ConfigError(
            f"{key}: a search chooses among the policy's draws, so its text is not the policy's own and its logprobs "
            "are not those of what is trained; a run draws plainly: remove it, and search with capo-ray solve"
        )
    section = key.rpartition(".")[0]
    where = f" of {section}={kinds[section]}" if section in kinds else ""
    return refuse_key(key, train_keys(kinds), TrainConfig, where)


def new_name(key: str) -> str | None:
    """The name of a key that once had another one; None for any other."""
    section, _, leaf = key.rpartition(".")
    return f"steps.{MOVED[leaf]}" if section == "credit" and leaf in MOVED else None


def refuse_key(key: str, keys: Mapping[str, FieldInfo], model: type[BaseModel], where: str = "") -> ConfigError:
    """The error for a key that is none of `model`'s `keys`: what is near, and what the section has."""
    section, _, leaf = key.rpartition(".")
    if any(known.startswith(key + ".") for known in keys):
        return ConfigError(
            f"{key} is a section, not a key: set one of {_list(k for k in keys if k.startswith(key + '.'))}"
        )
    siblings = [known for known in keys if section and known.startswith(section + ".")]
    theirs = get_close_matches(leaf, ELSEWHERE, n=1, cutoff=0.9)
    near = [ELSEWHERE[name] for name in theirs if ELSEWHERE[name] in keys]
    near = (
        near
        or get_close_matches(key, siblings or keys, n=1, cutoff=0.5 if siblings or not section else 0.7)
        or get_close_matches(key, keys, n=1, cutoff=0.7)
    )
    if not near:
        near = [k for k in keys if k.rpartition(".")[2] == leaf][:1]
    hint = f"; did you mean {near[0]}?" if near else "."
    if siblings:
        return ConfigError(f"{key} is no key{where}{hint} Its keys: {_list(s[len(section) + 1 :] for s in siblings)}")
    return ConfigError(f"{key} is no key{hint} Sections: {_list(model.model_fields)}")


def as_sentence(error: ValidationError, refuse: Callable[[str], ConfigError]) -> ConfigError:
    """The first of pydantic's complaints as a sentence, with the number of others; `refuse` words an unknown key."""
    complaints = error.errors()
    first = complaints[0]
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    key = _key(first["loc"])
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{refuse(key)}{more}")
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
        return ConfigError(f"{key}: {text}{more}" if key else f"{text}{more}")
    wanted = first["msg"].removeprefix("Input should be ").partition(", unable to parse")[0].partition(", got a ")[0]
    wanted = wanted.replace("a valid integer", "a whole number").replace("a valid ", "a ")
    if first["type"].startswith("bool_"):
        wanted = "true or false"
    return ConfigError(f"{key}: expected {wanted}, got {_shown(first['input'])}{more}")


def _key(loc: tuple[int | str, ...]) -> str:
    """A dotted key; pydantic names the union's tag after a section of several kinds, which is no part of the key."""
    parts = [str(part) for part in loc]
    if len(parts) > 2 and parts[1] in (SEARCHES if parts[0] == "search" else FAMILIES.get(parts[0], ())):
        del parts[1]
    return ".".join(parts)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def refuse_interpolation(tree: Any, key: str) -> None:
    """Raise where any text of a tree asks to be looked up."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            refuse_interpolation(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for value in tree:
            refuse_interpolation(value, key)
    elif isinstance(tree, str) and "${" in tree:
        raise ConfigError(f"{key}: expected a plain value, got {tree}; write the value itself, without ${{…}}")
