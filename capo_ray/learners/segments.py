"""A row of tokens without padding: which spans are segments, and which of them see a prompt that stands elsewhere.

row     | prompt A | prompt B | A's responses, one after another | B's responses | a lone sample, prompt and all |
own     | causal   | causal   | causal each                      | causal each   | causal                        |
seen                          | all of prompt A                  | all of B      |
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Span = tuple[int, int]


@dataclass(frozen=True)
class Segments:
    """A row's segments [start, end), which tile it, and the pairs (rows, keys) of responses and the prompt they see.

    The rows of `seen` follow each other, and so do its keys. `position_ids` [1, W] count from each sample's start.
    """

    own: tuple[Span, ...]
    seen: tuple[tuple[Span, Span], ...]
    position_ids: torch.Tensor
    own_ends: torch.Tensor  # cumulative lengths, int32, as the varlen kernel takes them
    row_ends: torch.Tensor
    key_ends: torch.Tensor

    @classmethod
    def of(cls, own: Sequence[Span], seen: Sequence[tuple[Span, Span]], device: torch.device) -> Segments:
        """With what kernels need of them on `device`."""
        prefix = {start: keys for rows, keys in seen for start, end in own if rows[0] <= start < rows[1]}
        lengths = [prefix[start][1] - prefix[start][0] if start in prefix else 0 for start, _ in own]
        positions = [torch.arange(end - start) + before for (start, end), before in zip(own, lengths, strict=True)]

        def ends(spans: Sequence[Span]) -> torch.Tensor:
            sums = itertools.accumulate((end - start for start, end in spans), initial=0)
            return torch.tensor(list(sums), dtype=torch.int32, device=device)

        rows, keys = [rows for rows, _ in seen], [keys for _, keys in seen]
        return cls(tuple(own), tuple(seen), torch.cat(positions)[None].to(device), ends(own), ends(rows), ends(keys))

    @property
    def longest(self) -> int:
        """The tokens of the longest sample, prompt and response."""
        return int(max(self._prefix_length(start) + end - start for start, end in self.own))

    def keys_of(self, start: int) -> Span:
        """The range that the segment beginning at `start` sees beside its own; an empty one where there is none."""
        return next((keys for rows, keys in self.seen if rows[0] <= start < rows[1]), (0, 0))

    def _prefix_length(self, start: int) -> int:
        first, end = self.keys_of(start)
        return end - first
