"""Cells without padding: families of samples with one prompt, kept together, and ranks in balance by what they compute.

    samples --equal prompts--> families --cut where one is too large--> pieces --least loaded bin with room--> cells

A cell computes each prompt once, and what siblings wrote alike once: that is what the budget bounds, save for a sample
that alone is longer. A family is cut where it does not fit a cell, or where a rank would wait for another longer than
computing its prompt again takes; siblings that wrote the same stay together.

Costs are in tokens, and a pair of tokens that attend to each other counts 1/8192 of one (our choice: 12 h^2 against
2 h multiplications in a layer of width 1,365; wider ones have less attention to a token, and it never decides alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from capo_ray.arrays import IntArray
from capo_ray.types import WeightedSample

PAIRS_PER_TOKEN = 8192
LEAST_SHARED = 2  # tokens of a prompt: one is not worth a second call of attention

Cell = tuple[WeightedSample, ...]


@dataclass(frozen=True)
class Piece:
    """Samples with one prompt, longest first, which one cell computes."""

    members: tuple[WeightedSample, ...]

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return prompt_length(self.members[0])

    @cached_property
    def texts(self) -> tuple[tuple[WeightedSample, ...], ...]:
        """The members, those together that have the same tokens."""
        found: dict[bytes, list[WeightedSample]] = {}
        for weighted in self.members:
            found.setdefault(key_of(weighted.sample.token_ids), []).append(weighted)
        return tuple(map(tuple, found.values()))

    @cached_property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return self.prompt + sum(tail_length(text[0]) for text in self.texts)

    @cached_property
    def cost(self) -> float:
        """In tokens."""
        pairs, prompt = self.prompt**2 / 2, self.prompt
        for text in self.texts:
            length = tail_length(text[0])
            pairs += length * (prompt + length / 2)
        return self.tokens + pairs / PAIRS_PER_TOKEN


def prompt_length(weighted: WeightedSample) -> int:
    """Tokens before the response."""
    return weighted.sample.spans[0][0]


def tail_length(weighted: WeightedSample) -> int:
    """Tokens from the response's first on, with what was read between its turns."""
    return len(weighted.sample.token_ids) - prompt_length(weighted)


def key_of(token_ids: Sequence[int] | IntArray) -> bytes:
    """Equal for equal tokens alone."""
    return np.asarray(token_ids, np.int32).tobytes()


def families(token_ids: Sequence[Sequence[int] | IntArray], starts: Sequence[int]) -> list[list[int]]:
    """The numbers of the sequences, those together whose tokens before their start are the same and worth sharing."""
    found: dict[object, list[int]] = {}
    for number, (ids, start) in enumerate(zip(token_ids, starts, strict=True)):
        key: object = key_of(ids[:start]) if start >= LEAST_SHARED else number
        found.setdefault(key, []).append(number)
    return list(found.values())


def computed_tokens(cell: Sequence[WeightedSample]) -> int:
    """Tokens that a cell computes when prompts are shared, and responses of siblings that wrote the same."""
    return sum(piece.tokens for piece in to_pieces(cell))


def to_pieces(samples: Sequence[WeightedSample]) -> list[Piece]:
    """The samples by families."""
    groups = families([w.sample.token_ids for w in samples], [prompt_length(w) for w in samples])
    return [Piece(tuple(samples[number] for number in members)) for members in groups]


def shared_grid(longest_first: Sequence[WeightedSample], num_ranks: int, budget: int) -> tuple[tuple[Cell, ...], ...]:
    """grid[microbatch][rank] with the least time, the sum over rows of what their dearest cell costs."""
    whole = to_pieces(longest_first)
    best: list[list[Piece]] = []
    num_cells, cap = 0, budget
    while True:
        pieces = [part for piece in whole for part in _cut(piece, cap)]
        cells = _fill(pieces, budget, num_ranks)
        num_cells = num_cells or len(cells)
        if len(cells) == num_cells and (not best or _time(cells, num_ranks) < 0.99 * _time(best, num_ranks)):
            best = cells
        # One rank waits for nobody; and where each sample stands alone no smaller cap cuts further.
        if num_ranks == 1 or len(cells) > num_cells or all(len(p.texts) == 1 for p in pieces):
            break
        cap = cap // 2
    return _deal(best, num_ranks)


def _cut(piece: Piece, cap: int) -> list[Piece]:
    """The piece in the fewest parts that compute at most `cap` tokens each, or hold a single text."""
    if piece.tokens <= cap or len(piece.texts) == 1:
        return [piece]
    room = cap - piece.prompt
    count = max(2, -(-(piece.tokens - piece.prompt) // room)) if room > 0 else len(piece.texts)
    while True:
        parts: list[list[tuple[WeightedSample, ...]]] = [[] for _ in range(min(count, len(piece.texts)))]
        sizes = [0] * len(parts)
        for text in piece.texts:
            at = sizes.index(min(sizes))
            parts[at].append(text)
            sizes[at] += tail_length(text[0])
        if count >= len(piece.texts) or all(
            size <= room or len(part) == 1 for size, part in zip(sizes, parts, strict=True)
        ):
            return [Piece(tuple(weighted for text in part for weighted in text)) for part in parts]
        count += 1


def _fill(pieces: Sequence[Piece], budget: int, num_ranks: int) -> list[list[Piece]]:
    """The pieces in the fewest whole rows of cells within the budget; cells may be empty."""
    order = sorted(pieces, key=lambda piece: (-piece.cost, str(piece.members[0].sample.key)))
    rows = max(1, -(-sum(piece.tokens for piece in order) // (budget * num_ranks)))
    while True:
        cells: list[list[Piece]] = [[] for _ in range(rows * num_ranks)]
        tokens, costs = [0] * len(cells), [0.0] * len(cells)
        for piece in order:
            open_to = [i for i, used in enumerate(tokens) if not used or used + piece.tokens <= budget]
            if not open_to:
                break
            at = min(open_to, key=costs.__getitem__)
            cells[at].append(piece)
            tokens[at] += piece.tokens
            costs[at] += piece.cost
        else:
            return cells
        rows += 1


def _time(cells: Sequence[Sequence[Piece]], num_ranks: int) -> float:
    """The sum over rows of what their dearest cell costs, cells of like cost standing in one row."""
    costs = sorted((sum(piece.cost for piece in cell) for cell in cells), reverse=True)
    return sum(costs[::num_ranks])


def _deal(cells: Sequence[Sequence[Piece]], num_ranks: int) -> tuple[tuple[Cell, ...], ...]:
    """grid[microbatch][rank]: the cells of a row cost about the same, and the order within rows alternates."""
    ordered = sorted(cells, key=lambda cell: sum(piece.cost for piece in cell), reverse=True)
    grid = []
    for index, start in enumerate(range(0, len(ordered), num_ranks)):
        row = [tuple(w for piece in cell for w in piece.members) for cell in ordered[start : start + num_ranks]]
        grid.append(tuple(row if index % 2 == 0 else reversed(row)))
    return tuple(grid)
