"""What every config section shares: frozen, unknown keys and infinite numbers refused, docstrings of fields kept."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StrictBool, StrictFloat, StrictInt, StrictStr

Scalar = StrictBool | StrictInt | StrictFloat | StrictStr
"""A value that passes through unread."""


def local_path(path: str) -> str:
    """The path itself; raises `ValueError` for an address, which would be taken for a directory `s3:` here."""
    if "://" in path:
        raise ValueError(
            f"expected a path on a file system that is mounted, got the address {path}; mount what it names (on every "
            "node of a cluster) and give the path there, or copy from and to it yourself"
        )
    return path


LocalPath = Annotated[str, AfterValidator(local_path)]
"""A directory or file that we read or write ourselves; an address that a library reads is a plain text."""


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


class RuleError(RuntimeError):
    """The function of a section is not there, raised, or returned what cannot be used; says which, and its class."""


OURS = "capo_ray."
"""What the functions of this package begin with."""


class RuledSection(Section):
    """A section of which there are several kinds, each with a function of its own."""

    rule: ClassVar[str] = ""
    """Its function, `package.module:function`, found when it is first needed."""

    @classmethod
    def find_rule(cls) -> Callable[..., Any]:
        """The function of `rule`; raises `RuleError` where there is none."""
        try:
            found = pkgutil.resolve_name(cls.rule)
        except Exception as error:  # noqa: BLE001 - it may be another package's, and becomes a sentence about it
            raise RuleError(f"{cls.__name__}.rule={cls.rule!r} cannot be found ({_said(error)})") from None
        if not callable(found):
            raise RuleError(f"{cls.__name__}.rule={cls.rule!r} must name a function (got {type(found).__name__})")
        return found

    @classmethod
    @contextmanager
    def blamed(cls, *expected: type[Exception]) -> Iterator[None]:
        """What the function raises inside, but for what is `expected`, is a `RuleError` with its traceback."""
        try:
            yield
        except expected:
            raise
        except Exception as error:  # noqa: BLE001 - it may be another package's, and becomes a sentence about it
            raise cls.wrong(f"raised {_said(error)}").with_traceback(error.__traceback__) from None

    @classmethod
    def wrong(cls, what: str) -> RuleError:
        """What the function did, after whose it is."""
        return RuleError(f"{cls.__name__} ({cls.rule}) {what}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def flat_keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A dumped config as `section.key: value`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flat_keys(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
