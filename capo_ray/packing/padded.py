"""Cells padded to their longest sample, which cost rows x longest tokens.

    samples, longest first --cut into runs--> cells --dealt--> grid[microbatch][rank]

No cell costs more than the budget, save one that holds a single sample which alone is longer.
"""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.types import WeightedSample

Cell = tuple[WeightedSample, ...]


def padded_grid(longest_first: Sequence[WeightedSample], num_ranks: int, budget: int) -> tuple[tuple[Cell, ...], ...]:
    """grid[microbatch][rank] in the fewest rows, cut as evenly as that number allows."""
    return _deal(_balanced_cells(longest_first, num_ranks, budget), num_ranks)


def padded_tokens(cell: Sequence[WeightedSample]) -> int:
    """Tokens that a cell costs once every sample is padded to the longest."""
    return len(cell) * max((len(w.sample.token_ids) for w in cell), default=0)


def _balanced_cells(longest_first: Sequence[WeightedSample], num_ranks: int, budget: int) -> list[Cell]:
    """The fewest rows of cells under the budget, cut as evenly as that number of cells allows."""
    num_rows = -(-len(_cut(longest_first, budget)) // num_ranks)
    low, high = 1, budget
    while low < high:  # the smallest cap that still needs no further row: every rank gets its share of the tokens
        cap = (low + high) // 2
        if len(_cut(longest_first, cap)) <= num_rows * num_ranks:
            high = cap
        else:
            low = cap + 1
    return _cut(longest_first, low)


def _cut(longest_first: Sequence[WeightedSample], cap: int) -> list[Cell]:
    """Consecutive runs of at most `cap` padded tokens; the first of a run is its longest."""
    cells: list[Cell] = []
    start = 0
    while start < len(longest_first):
        rows = max(1, cap // len(longest_first[start].sample.token_ids))
        cells.append(tuple(longest_first[start : start + rows]))
        start += rows
    return cells


def _deal(cells: Sequence[Cell], num_ranks: int) -> tuple[tuple[Cell, ...], ...]:
    """grid[microbatch][rank]: the cells of a row cost about the same, and the order within rows alternates."""
    ordered = sorted(cells, key=padded_tokens, reverse=True)
    grid = []
    for index, start in enumerate(range(0, len(ordered), num_ranks)):
        row = ordered[start : start + num_ranks]
        row += [()] * (num_ranks - len(row))
        grid.append(tuple(row if index % 2 == 0 else reversed(row)))
    return tuple(grid)
