"""A term of a sum of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Term:
    """One part of a device's memory: what it is, its bytes, and the formula that gave them."""

    name: str
    num_bytes: float
    formula: str

    @property
    def gib(self) -> float:
        """The bytes in GiB."""
        return self.num_bytes / GIB


def split(name: str, num_params: int, num_bytes: int, parts: int, what: str = "N") -> Term:
    """The term of numbers that so many parts share evenly; `what` they are in its formula."""
    return Term(name, num_params * num_bytes / parts, f"{num_bytes} B x {what}{over(parts)}")


def over(parts: int) -> str:
    """How a formula says that it is divided."""
    return f" / {parts}" if parts > 1 else ""


def total(terms: Iterable[Term]) -> float:
    """The bytes of all terms."""
    return sum(term.num_bytes for term in terms)
