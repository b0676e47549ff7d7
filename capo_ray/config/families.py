"""What a run may name: what this package has, and what packages installed beside it add.

A package adds one by an entry point: the kind's name, and its config class, whose `rule` names its function
(`capo_ray.credit_methods` of credit methods, `capo_ray.segmenters` of segmenters). One that cannot be loaded is refused
by name, and harms nothing else. A verifier is a function and has no section (`capo_ray.verifiers`).
Invariant: packages are looked for at the first question, not at import, so that theirs may import ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, reduce
from importlib.metadata import EntryPoint, entry_points
from operator import or_
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from capo_ray.config.base import RuledSection

RuledT = TypeVar("RuledT", bound=RuledSection)


VERIFIERS = "capo_ray.verifiers"


def offered_functions(group: str) -> dict[str, str]:
    """`package.module:function` by the name under which a package offers it; nothing is imported."""
    found = sorted(entry_points(group=group), key=lambda entry: entry.name)
    return {entry.name: f"{entry.module}:{entry.attr}" for entry in found}


class Family(Mapping[str, type[RuledT]], Generic[RuledT]):
    """The config class of each kind by its name; `broken` has a sentence for each that cannot be loaded.

    The kinds are subclasses of `base`, told apart by its key `tag`; a run chooses one as `section=name`.
    """

    def __init__(
        self, section: str, tag: str, base: type[RuledT], group: str, built_in: Sequence[type[RuledT]]
    ) -> None:
        self.section, self.tag = section, tag
        self._base, self._group = base, group
        self._built_in = {self._name_of(kind): kind for kind in built_in}
        self.broken: dict[str, str] = {}

    def __getitem__(self, name: str) -> type[RuledT]:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Any of the kinds, told by the tag."""
        any_of = reduce(or_, self.values())
        return handler.generate_schema(Annotated[any_of, Field(discriminator=self.tag)])

    @cached_property
    def _all(self) -> dict[str, type[RuledT]]:
        found = dict(self._built_in)
        for entry in sorted(entry_points(group=self._group), key=lambda entry: entry.name):
            try:
                found[entry.name] = self._load(entry, found)
            except Exception as error:  # noqa: BLE001 - it is another package's, and becomes a sentence about it
                package = entry.dist.name if entry.dist is not None else entry.value
                self.broken[entry.name] = (
                    f"{self.section}={entry.name} is of the package {package}, which cannot give it "
                    f"({type(error).__name__}: {_line(error)}); mend or uninstall that package"
                )
        return found

    def _load(self, entry: EntryPoint, taken: Mapping[str, object]) -> type[RuledT]:
        kind = entry.load()
        if not (isinstance(kind, type) and issubclass(kind, self._base)):
            raise TypeError(f"{entry.value} must be a subclass of {self._base.__name__} (got {kind!r})")
        if entry.name in taken:
            raise ValueError("another has that name")
        if self._name_of(kind) != entry.name or not kind.rule:
            raise ValueError(f"{entry.value} must have {self.tag}={entry.name!r} as its default, and a rule")
        kind.model_validate({self.tag: entry.name})  # all keys have defaults, and the section can be made
        return kind

    def _name_of(self, kind: type[RuledT]) -> str:
        return str(kind.model_fields[self.tag].default)


def _line(error: Exception) -> str:
    """What an exception says, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return " ".join(str(error).split())
