"""The command line of `capo-ray solve` becomes one `SolveConfig`, and its suites become problems."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pydantic.fields import FieldInfo

from capo_ray.cli.compose import _sort, compose_keys
from capo_ray.cli.eval_settings import base_of, refuse_settings
from capo_ray.cli.overrides import Setting
from capo_ray.cli.schema import ConfigError, keys_of
from capo_ray.config.families import Family
from capo_ray.config.search import SEARCHES, NavigatorSearch
from capo_ray.config.solve import SolveConfig
from capo_ray.config.steps import DEFAULT_STEPS, SEGMENTERS

GROUPS = ("model", "critic", "engine", "cluster")
KINDS: tuple[tuple[Family[Any], str], ...] = (
    (SEARCHES, NavigatorSearch().method),
    (SEGMENTERS, DEFAULT_STEPS.segmenter),
)
"""The sections of several kinds, and the one that each has unasked."""


def compose_solve(overrides: Sequence[str]) -> SolveConfig:
    """The configuration that overrides ask for; raises `ConfigError` with one sentence otherwise."""
    choices, settings = _sort([_spelt_out(text) for text in overrides], GROUPS)
    base, settings = base_of(choices, settings, "solve")
    settings, keys = list(settings), dict[str, FieldInfo]()
    for family, unasked in KINDS:
        keys |= _choose(family, unasked, base, settings)
    plain = {key: field for key, field in keys_of(SolveConfig).items() if key.partition(".")[0] not in base_sections()}
    config = compose_keys(SolveConfig, settings, base, plain | keys, list(choices))
    refuse_settings(config, [s.key for s in settings])
    return config


def base_sections() -> set[str]:
    """The sections of which there are several kinds."""
    return {family.section for family, _ in KINDS}


def _spelt_out(text: str) -> str:
    """`search=navigator` as the key that it is."""
    name, equals, value = text.partition("=")
    tag = next((family.tag for family, _ in KINDS if equals and family.section == name), "")
    return f"{name}.{tag}={value}" if tag else text


def _choose(
    family: Family[Any], unasked: str, tree: dict[str, Any], settings: Sequence[Setting]
) -> dict[str, FieldInfo]:
    """The keys of the kind that is asked for, which the tree then names; raises for one that there is not."""
    section, tag = family.section, f"{family.section}.{family.tag}"
    before = (tree.get(section) or {}).get(family.tag, unasked)
    kind = next((s.text for s in reversed(settings) if s.key == tag), before)
    if kind not in family:
        near = get_close_matches(kind, family, n=1, cutoff=0.5)
        hint = f"; did you mean {section}={near[0]}?" if near else "."
        why = family.broken.get(kind, f"{section}={kind} is no choice{hint} Choices: {', '.join(sorted(family))}")
        raise ConfigError(why)
    known = family[kind].model_fields
    kept = {key: value for key, value in (tree.get(section) or {}).items() if key in known}
    tree[section] = kept | {family.tag: kind}
    return keys_of(family[kind], f"{section}.")
