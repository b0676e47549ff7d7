"""The credit methods that a run may name: those of this package, and those of packages that are installed beside it.

A package adds a method by an entry point of the group `capo_ray.credit_methods`: the method's name, and its config
class, whose `rule` names its function. One that cannot be loaded is refused by name, and harms nothing else.
Invariant: packages are looked for at the first question, not at import, so that theirs may import ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, reduce
from importlib.metadata import EntryPoint, entry_points
from operator import or_
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from capo_ray.config.credit.base import CreditBase

GROUP = "capo_ray.credit_methods"


class Methods(Mapping[str, type[CreditBase]]):
    """The config class of each method by its name; `broken` has a sentence for each that cannot be loaded."""

    def __init__(self, built_in: Sequence[type[CreditBase]]) -> None:
        self._built_in = {_name_of(kind): kind for kind in built_in}
        self.broken: dict[str, str] = {}

    def __getitem__(self, method: str) -> type[CreditBase]:
        return self._all[method]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Any of the methods, told by `method`."""
        any_of = reduce(or_, self.values())
        return handler.generate_schema(Annotated[any_of, Field(discriminator="method")])

    @cached_property
    def _all(self) -> dict[str, type[CreditBase]]:
        found = dict(self._built_in)
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
            try:
                found[entry.name] = _load(entry, found)
            except Exception as error:  # noqa: BLE001 - it is another package's, and becomes a sentence about it
                package = entry.dist.name if entry.dist is not None else entry.value
                self.broken[entry.name] = (
                    f"credit={entry.name} is of the package {package}, which cannot give it ({type(error).__name__}: "
                    f"{error}); mend or uninstall that package"
                )
        return found


def _load(entry: EntryPoint, taken: Mapping[str, object]) -> type[CreditBase]:
    kind = entry.load()
    if not (isinstance(kind, type) and issubclass(kind, CreditBase)):
        raise TypeError(f"{entry.value} must be a subclass of CreditBase (got {kind!r})")
    if entry.name in taken:
        raise ValueError("the name is another method's")
    if _name_of(kind) != entry.name or not kind.rule:
        raise ValueError(f"{entry.value} must have method={entry.name!r} as its default, and a rule")
    kind(method=entry.name)  # all keys have defaults, and the requests can be made
    return kind


def _name_of(kind: type[CreditBase]) -> str:
    return str(kind.model_fields["method"].default)
