"""What every config section shares: frozen, unknown keys and infinite numbers refused, docstrings of fields kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, StrictBool, StrictFloat, StrictInt, StrictStr

Scalar = StrictBool | StrictInt | StrictFloat | StrictStr
"""A value that passes through unread."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Keys of a section that change nothing in a composition: who gives one is told `KEY has no effect REASON`."""

    keys: tuple[str, ...]
    """Within the section that says so; one stands for all below it too."""
    when: bool
    """Whether it is so in this composition."""
    reason: str


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )

    def idle(self) -> tuple[Idle, ...]:
        """The rules on keys of this section that it can tell alone; always all of them, whether they hold or not."""
        return ()


class RuledSection(Section):
    """A section of which there are several kinds, each with a function of its own."""

    rule: ClassVar[str] = ""
    """Its function, `package.module:function`, found when it is first needed."""


def flat_keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A dumped config as `section.key: value`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flat_keys(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
