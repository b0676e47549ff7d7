"""Evidence on a line of `groups.jsonl`: one response's fields, and the refusal of those that do not fit."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from capo_ray.config.credit import Request
from capo_ray.types import Completion, Span

LARGEST = 1e100  # of a number of evidence; its square is still finite
ROUNDING = 1e-3  # by which a mean of logprobs may come out above 0


class FieldError(ValueError):
    """A line that does not fit: the field, what was expected there and what was got."""


@dataclass(frozen=True, slots=True)
class ResponseLine:
    """One response of a line: its fields, `where` it stands, and what the credit `method` has to read it with."""

    item: dict[str, Any]
    where: str
    method: str
    rubric: str
    response: Completion
    steps: tuple[Span, ...]
    valid: bool
    """Whether it has a reward; without one no evidence is wanted of it."""

    def wants(self, asked: Request | None) -> bool:
        """Whether this evidence must be here."""
        return self.valid and asked is not None

    def series(self, name: str, asked: Request | None, count: int, *, logprobs: bool = False) -> tuple[float, ...]:
        """The `count` numbers of a field; () where there is none and none is wanted."""
        if self.wants(asked) and name not in self.item:
            self.refuse(name, f"{count} numbers, which credit={self.method} reads", None)
        values = read_numbers(self.item, name, count, self.where)
        if logprobs and any(x > ROUNDING for x in values):
            self.refuse(name, "logprobs, which are at most 0", self.item[name])
        return values

    def per_token(self, name: str, asked: Request | None, *, logprobs: bool = False) -> tuple[float, ...]:
        """[A]: those of the [T] numbers of a field that belong to sampled tokens."""
        values = self.series(name, asked, len(self.response.token_ids), logprobs=logprobs)
        return values if not self.response.acted else tuple(itertools.compress(values, self.response.sampled()))

    def per_prefix(self, name: str, asked: Request | None, *, logprobs: bool = False) -> tuple[float, ...]:
        """[K+1] numbers of a field: after 0 .. K steps."""
        return self.series(name, asked, len(self.steps) + 1, logprobs=logprobs)

    def given(self, name: str, asked: Request | None) -> Any:
        """The field as it stands; None where there is none and none is wanted."""
        if self.wants(asked) and name not in self.item:
            self.refuse(name, f"what credit={self.method} reads", None)
        return self.item.get(name)

    def refuse(self, name: str, expected: str, got: Any) -> NoReturn:
        """Raise `FieldError` for a field of this response."""
        refuse(f"{self.where}.{name}", expected, got)


def read_numbers(item: dict[str, Any], name: str, count: int, where: str) -> tuple[float, ...]:
    """A list of `count` finite numbers, or () where there is none."""
    if name not in item:
        return ()
    values = item[name]
    numbers = isinstance(values, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)
    if not numbers or len(values) != count:
        refuse(f"{where}.{name}", f"{count} numbers", values)
    try:
        result = tuple(float(x) for x in values)
    except OverflowError:
        result = (math.inf,)
    if not all(abs(x) <= LARGEST for x in result):
        refuse(f"{where}.{name}", f"numbers of ordinary size (up to {LARGEST:g})", values)
    return result


def refuse(field: str, expected: str, got: Any) -> NoReturn:
    """Raise `FieldError`."""
    shown = "nothing" if got in (None, "nothing") else show(got)
    raise FieldError(f"{field}: expected {expected}, got {shown}")


def show(value: Any) -> str:
    """A value as JSON, cut to a line."""
    try:
        shown = json.dumps(value)
    except RecursionError:
        return "a deeply nested value"
    return shown if len(shown) <= 80 else shown[:79] + "…"
