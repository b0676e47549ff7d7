"""Keys that would change nothing in this composition: given on the command line, they are refused.

Each section says which of its keys are idle (`Section.idle`); this walks them.
Invariant: only what the user wrote is refused; a preset's or default's idle keys are not the user's mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from capo_ray.cli.schema import ConfigError
from capo_ray.config.base import Idle, Section


def refuse_useless(config: Section, given: Sequence[str], judges: bool = False) -> None:
    """Raise for the first given key (`critic.num_votes`) or choice (`critic=`) that has no effect.

    `judges`: critics are asked whatever the credit method reads, so that their section is never idle as a whole.
    """
    whole = ("", ("critic",)) if judges else None
    refuse_keys([(path, rule) for path, rule in idle_rules(config) if (path, rule.keys) != whole], given)


def is_idle(config: Section, key: str) -> bool:
    """Whether a key would be refused on the command line."""
    return any(rule.when and any(_covers(path + name, key) for name in rule.keys) for path, rule in idle_rules(config))


def refuse_keys(rules: Sequence[tuple[str, Idle]], given: Sequence[str]) -> None:
    """Raise for the first given key that these rules, each with what its keys begin with, call idle."""
    for key in given:
        for path, rule in rules:
            if rule.when and any(_covers(path + name, key) for name in rule.keys):
                raise ConfigError(f"{key}{'…' if key.endswith('=') else ''} has no effect {rule.reason}")


def idle_rules(section: Section, path: str = "") -> Iterator[tuple[str, Idle]]:
    """The rules of a section and of those in it, each with what its keys begin with (`critic.`)."""
    yield from ((path, rule) for rule in section.idle())
    for name, value in section:
        if isinstance(value, Section):
            yield from idle_rules(value, f"{path}{name}.")


def _covers(name: str, key: str) -> bool:
    """Whether a key or choice is `name` or of that section; `critic.extra.block_size` is given under critic.extra."""
    return key == name or key.startswith((f"{name}.", f"{name}="))
