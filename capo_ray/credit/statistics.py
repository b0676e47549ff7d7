"""The few sums that every credit rule is made of: numbers in, numbers out.

Sums are exactly rounded (`fsum`), so that the order of siblings cannot change a bit of anyone's advantage.
A row is one response's tokens, or its steps; a row weight multiplies each of them (0: the row counts for nothing).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from capo_ray.arrays import Runs, exact_sum

Row = TypeVar("Row", bound=Sequence[float])

ROUNDING = 1e-12  # rewards that differ by less are equal: the sums they come from round, as 0.1 + 0.2 - 0.1 and 0.2 do


def changed(row: Row, change: Callable[[float], float]) -> Row:
    """The row with each number changed; of its own kind, runs or list."""
    return cast(Row, row.map(change) if isinstance(row, Runs) else [change(x) for x in row])


def mean(rows: Sequence[Sequence[float]], row_weights: Sequence[float]) -> float:
    """The weighted mean of all entries; 0.0 where nothing has weight."""
    total = math.fsum(w * len(row) for w, row in zip(row_weights, rows, strict=True))
    if total == 0.0:
        return 0.0
    counted: Counter[float] = Counter()
    for w, row in zip(row_weights, rows, strict=True):
        if w:
            for x, n in _counts(row).items():
                counted[w * x] += n
    return exact_sum(counted.items()) / total


def _counts(row: Sequence[float]) -> Counter[float]:
    return row.counts() if isinstance(row, Runs) else Counter(row)


def std(rows: Sequence[Sequence[float]], row_weights: Sequence[float]) -> float:
    """The weighted population standard deviation of all entries; exactly 0.0 where they are equal up to rounding."""
    entries = [x for w, row in zip(row_weights, rows, strict=True) if w for x in _counts(row)]
    if not entries:
        return 0.0
    low, high = min(entries), max(entries)
    # Without this, the rounding of equal entries, or of their mean, would be blown up to advantages of +-1.
    if high - low <= ROUNDING * max(1.0, abs(low), abs(high)):
        return 0.0
    centre = mean(rows, row_weights)
    return math.sqrt(mean([changed(row, lambda x: (x - centre) ** 2) for row in rows], row_weights))


def standardise(rows: Sequence[Row], row_weights: Sequence[float], min_std: float = 0.0) -> list[Row]:
    """(x - mean) / max(std, min_std) for the rows with weight, zeros for the others and where std is 0."""
    centre, scale = mean(rows, row_weights), std(rows, row_weights)
    if scale == 0.0:
        return [_zeros(row) for row in rows]
    scale = max(scale, min_std)
    return [
        changed(row, lambda x: (x - centre) / scale) if w else _zeros(row)
        for w, row in zip(row_weights, rows, strict=True)
    ]


def leave_one_out(rows: Sequence[Row], row_weights: Sequence[float]) -> list[Row]:
    """x - mean of the other rows' entries for the rows with weight; zeros where there is no other row with weight."""
    if std(rows, row_weights) == 0.0:
        return [_zeros(row) for row in rows]
    sums = [w * exact_sum(_counts(row).items()) for w, row in zip(row_weights, rows, strict=True)]
    sizes = [w * len(row) for w, row in zip(row_weights, rows, strict=True)]
    result: list[Row] = []
    for i, row in enumerate(rows):
        others = math.fsum(size for j, size in enumerate(sizes) if j != i)
        if not row_weights[i] or others == 0.0:
            result.append(_zeros(row))
            continue
        baseline = math.fsum(x for j, x in enumerate(sums) if j != i) / others
        result.append(changed(row, lambda x, baseline=baseline: x - baseline))  # type: ignore[misc]
    return result


def _zeros(row: Row) -> Row:
    return changed(row, lambda _: 0.0)


def standardise_scalars(xs: Sequence[float], weights: Sequence[float], noise: float = 0.0) -> list[float]:
    """As `standardise`, for one number per response; zeros also where the deviation is no more than `noise`."""
    rows = [[x] for x in xs]
    if std(rows, weights) <= noise:
        return [0.0] * len(xs)
    return [row[0] for row in standardise(rows, weights)]


def centre_scalars(xs: Sequence[float], weights: Sequence[float]) -> list[float]:
    """x - mean for the responses with weight, zeros for the others and where all of them are equal."""
    rows = [[x] for x in xs]
    if std(rows, weights) == 0.0:
        return [0.0] * len(xs)
    middle = mean(rows, weights)
    return [x - middle if w else 0.0 for x, w in zip(xs, weights, strict=True)]


def leave_one_out_scalars(xs: Sequence[float], weights: Sequence[float]) -> list[float]:
    """As `leave_one_out`, for one number per response."""
    return [row[0] for row in leave_one_out([[x] for x in xs], weights)]


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation, or None where one of the two does not vary."""
    if len(xs) < 2 or min(xs) == max(xs) or min(ys) == max(ys):
        return None
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    cov = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    var_x = math.fsum((x - mean_x) ** 2 for x in xs)
    var_y = math.fsum((y - mean_y) ** 2 for y in ys)
    # Underflow of tiny variations counts as none.
    return cov / math.sqrt(var_x * var_y) if var_x * var_y > 0.0 else None
