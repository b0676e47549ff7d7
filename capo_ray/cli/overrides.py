"""What a user sets, as settings of keys: words of a command line, a file, a mapping in Python.

credit=grpo learner.lr=1e-5                          words, whose values are read by Hydra's grammar
{"credit": "grpo", "learner": {"lr": 1e-5}}          a tree, whose values are taken as they are
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from capo_ray.cli.schema import ConfigError
from capo_ray.config import FAMILIES
from capo_ray.config.base import local_path

AS_WRITTEN = object()
"""In place of the value of a setting that is still a text."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One key and its value: as text, or, where it comes of a tree, as itself."""

    key: str
    text: str
    value: Any = AS_WRITTEN


Override = str | Setting


def split(override: Override, or_what: str = "") -> Setting:
    """The setting of a word `key=value`."""
    if isinstance(override, Setting):
        return override
    key, equals, value = override.partition("=")
    key = key.strip().lstrip("+")
    if not equals or not key or key.startswith("~") or "@" in key or "/" in key:
        raise ConfigError(f"expected key=value{or_what}, got {override!r}")
    return Setting(key, value)


def settings_of(tree: Mapping[Any, Any], prefix: str = "") -> list[Setting]:
    """The settings of a tree; the kind of a section that has several (`credit: {method: grpo}`) is its choice."""
    settings: list[Setting] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            tag = FAMILIES[key].tag if key in FAMILIES else None
            if tag in value:
                settings.append(Setting(key, str(value[tag]), value[tag]))
            settings += settings_of({k: v for k, v in value.items() if k != tag}, f"{key}.")
        else:
            settings.append(Setting(key, str(value), value))
    return settings


def read_file(path: str) -> list[Setting]:
    """The settings of a YAML file; raises `ConfigError`."""
    import yaml

    try:
        tree = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"--config: expected a file of settings in YAML, got {path}: {why}") from None
    if not isinstance(tree, dict):
        got = "nothing" if tree is None else type(tree).__name__
        raise ConfigError(f"--config: expected sections and keys in {path} (credit: grpo), got {got}")
    return settings_of(tree)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`."""
    parser.add_argument("--config", metavar="FILE", help="settings in YAML, under the overrides")


def output_path(text: str) -> Path:
    """What a command is to write, as argparse takes it: an address is refused, as in a key."""
    try:
        return Path(local_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def all_overrides(args: argparse.Namespace) -> list[Override]:
    """Those of the file, where one is given, then those of the command line."""
    return [*(read_file(args.config) if args.config else ()), *args.overrides]


def new_keys(settings: Iterable[Setting], tree: Mapping[str, Any], keys: Mapping[str, FieldInfo]) -> list[str]:
    """What of `keys` a user has set: all that were written as words, and those of a tree that change what was there.

    So a run's whole config.yaml can be given, in which every key stands, those without effect too.
    """
    return [
        s.key for s in settings if s.value is AS_WRITTEN or _as_list(_found(tree, s.key, keys)) != _as_list(s.value)
    ]


def _found(tree: Mapping[str, Any], key: str, keys: Mapping[str, FieldInfo]) -> Any:
    found: Any = tree
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return _as_list(keys[key].get_default(call_default_factory=True)) if key in keys else None
        found = found[name]
    return _as_list(found)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def value_of(setting: Setting, literal: bool) -> Any:
    """A setting's value by Hydra's grammar; the value of a text key is taken as written unless it is quoted."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if setting.value is not AS_WRITTEN:
        return setting.value
    if "${" in setting.text:
        raise ConfigError(
            f"{setting.key}: expected a plain value, got {setting.text}; write the value itself, without ${{…}}"
        )
    if literal and setting.text[:1] not in ("'", '"'):
        return setting.text
    try:
        override = OverridesParser.create().parse_override(f"{setting.key}={setting.text}")
        if override.is_sweep_override():
            raise ConfigError(
                f"{setting.key}: expected one value, got {setting.text}; several values of one key are written "
                f"[{setting.text}], and several runs are several commands"
            )
        return override.value()
    except HydraException:
        cure = "put it in single quotes"
        if setting.text[:1] == "(" and setting.text[-1:] == ")":
            cure = f"several values of one key are written [{setting.text[1:-1]}]"
        raise ConfigError(f"{setting.key}: expected a value, got {setting.text}; {cure}") from None


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a tree, making the sections on the way."""
    *sections, leaf = key.split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
    tree[leaf] = value
