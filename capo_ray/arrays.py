"""Numbers of tokens, packed: read-only arrays, and rows that hold one number per token as runs of equal ones.

A step's tokens share their credit and a batch's tokens their weight, so a row of T numbers is R of them and their ends,
R far below T. Sums over runs are exactly those over tokens: they take each number as often as it stands there.

T tokens, R runs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.signedinteger[Any]]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]


def frozen(values: npt.ArrayLike, *dtypes: type[np.generic]) -> Any:
    """`values` as a read-only array [T], as they are where they already have one of `dtypes`, else in the first."""
    known = isinstance(values, np.ndarray) and values.dtype.type in dtypes
    array = np.asarray(values) if known else np.array(values, dtype=dtypes[0])
    if array.ndim != 1:
        raise ValueError(f"expected one number per token, got an array of shape {array.shape}")
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def freeze_fields(noun: object, **dtypes: tuple[type[np.generic], ...]) -> None:
    """Make the named fields of a frozen dataclass read-only arrays; to be called while it is being made."""
    for name, wanted in dtypes.items():
        object.__setattr__(noun, name, frozen(getattr(noun, name), *wanted))


class ByValue:
    """Equality of frozen dataclasses that hold arrays: of one class, all fields equal. They have no hash."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))  # type: ignore[arg-type]
        return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


class Runs(Sequence[float]):
    """One number for each of T tokens: `values` [R], each standing up to its `ends` [R] (exclusive; the last is T)."""

    __slots__ = ("ends", "values")

    def __init__(self, values: npt.ArrayLike, ends: npt.ArrayLike) -> None:
        self.values: npt.NDArray[np.float64] = frozen(values, np.float64)
        self.ends: IntArray = frozen(ends, np.int32)
        if len(self.values) != len(self.ends):
            raise ValueError(f"expected one end for each of the {len(self.values)} values, got {len(self.ends)}")

    @classmethod
    def of(cls, row: Iterable[float]) -> Runs:
        """The numbers of T tokens."""
        if isinstance(row, Runs):
            return row
        each = np.asarray(row if isinstance(row, np.ndarray) else list(row), dtype=np.float64)
        if not len(each):
            return NO_RUNS
        ends = np.append(np.flatnonzero(each[1:] != each[:-1]) + 1, len(each))
        return cls(each[ends - 1], ends)

    @classmethod
    def constant(cls, value: float, num_tokens: int) -> Runs:
        """The same number for all tokens."""
        return cls([value], [num_tokens]) if num_tokens else NO_RUNS

    @classmethod
    def over(cls, spans: Sequence[tuple[int, int]], values: Sequence[float]) -> Runs:
        """The number of each span for its tokens; the spans tile [0, T)."""
        if len(spans) != len(values):
            raise ValueError(f"expected one number for each of the {len(spans)} spans, got {len(values)}")
        each, ends = np.array(values, np.float64), np.array([end for _, end in spans], np.int32)
        # Most steps are alike; what is joined here is neither summed nor sent twice.
        last = np.append(each[1:] != each[:-1], True)[: len(each)]
        return cls(each[last], ends[last])

    def map(self, change: Callable[[float], float]) -> Runs:
        """The row with each number changed."""
        return Runs([change(x) for x in self.values.tolist()], self.ends)

    def with_each(self, other: Runs, join: Callable[[float, float], float]) -> Runs:
        """The row of `join(own, other's)` for each token."""
        pairs = list(self.beside(other))
        return Runs([join(a, b) for a, b, _ in pairs], np.cumsum([n for _, _, n in pairs], dtype=np.int32))

    def beside(self, other: Runs) -> Iterator[tuple[float, float, int]]:
        """The pairs of numbers (own, other's) in order, each with the number of its tokens."""
        if len(self) != len(other):
            raise ValueError(f"expected rows of as many tokens, got {len(self)} and {len(other)}")
        if self.ends is other.ends or np.array_equal(self.ends, other.ends):
            return zip(self.values.tolist(), other.values.tolist(), self.sizes().tolist(), strict=True)
        ends = np.union1d(self.ends, other.ends)
        own = self.values[np.searchsorted(self.ends, ends)].tolist()
        others = other.values[np.searchsorted(other.ends, ends)].tolist()
        return zip(own, others, _sizes(ends).tolist(), strict=True)

    def expand(self, dtype: type[np.floating[Any]] = np.float64) -> FloatArray:
        """The numbers as an array [T]."""
        return np.repeat(self.values.astype(dtype), self.sizes())

    def sizes(self) -> IntArray:
        """[R]: the tokens of each run."""
        return _sizes(self.ends)

    def counts(self) -> Counter[float]:
        """How many tokens have each number."""
        counted: Counter[float] = Counter()
        for value, size in zip(self.values.tolist(), self.sizes().tolist(), strict=True):
            counted[value] += size
        return counted

    def any(self) -> bool:
        """Whether any token has a number other than zero."""
        return bool(self.values[self.sizes() > 0].any())

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __iter__(self) -> Iterator[float]:
        return iter(self.expand().tolist())

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[float, ...]: ...
    def __getitem__(self, index: int | slice) -> float | tuple[float, ...]:
        if isinstance(index, slice):
            return tuple(self.expand()[index].tolist())
        at = range(len(self))[index]
        return float(self.values[np.searchsorted(self.ends, at, side="right")])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Runs | tuple | list | np.ndarray):
            return NotImplemented
        return len(self) == len(other) and np.array_equal(self.expand(), Runs.of(other).expand())

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Runs({self.values.tolist()}, {self.ends.tolist()})"

    def __reduce__(self) -> tuple[type[Runs], tuple[Any, Any]]:
        return Runs, (self.values, self.ends)


NO_RUNS = Runs([], [])


def _sizes(ends: IntArray) -> IntArray:
    sizes = ends.copy()
    sizes[1:] -= ends[:-1]
    return sizes


def exact_sum(counted: Iterable[tuple[float, int]]) -> float:
    """The exactly rounded sum of numbers, each as often as it is counted: `fsum` over all of them one by one.

    Raises OverflowError where that is beyond the range of numbers.
    """
    # A count is a sum of powers of two, and a number times one of them is not rounded.
    total = math.fsum(
        x if n == 1 else x * (1 << bit) for x, n in counted for bit in range(n.bit_length()) if n >> bit & 1
    )
    if math.isinf(total):
        raise OverflowError("a sum of finite numbers must be finite")
    return total
