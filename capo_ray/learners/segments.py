"""A row of tokens without padding: which spans are segments, and which of them see a prompt that stands elsewhere.

row     | prompt A | prompt B | A's responses, one after another | B's responses | a lone sample, prompt and all |
own     | causal   | causal   | causal each                      | causal each   | causal                        |
seen                          | all of prompt A                  | all of B      |
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

Span = tuple[int, int]


@dataclass(frozen=True)
class Padded:
    """N segments of about one length, padded behind to L rows; each sees its own keys causally, or all of a prompt's M.

    Behind the end of a segment stand rows of its last token again. They see nothing that is not there, and causal rows
    before them do not see them.
    """

    num: int
    row_ids: torch.Tensor  # [N * L]
    key_ids: torch.Tensor  # [N * M]; of causal segments those of the rows
    real: torch.Tensor  # the places of the real ones among the N * L
    made: torch.Tensor  # the places of the others
    rows: torch.Tensor  # the real rows, one after another
    causal: bool

    @classmethod
    def of(cls, pairs: Sequence[tuple[Span, Span]], causal: bool) -> Padded:
        """Of (rows, keys); unless causal, all have as many keys."""
        starts, ends = torch.tensor([rows for rows, _ in pairs]).T
        offsets = torch.arange(int((ends - starts).max()))
        inside = (offsets < (ends - starts)[:, None]).flatten()
        row_ids = torch.minimum(starts[:, None] + offsets, ends[:, None] - 1).flatten()
        key_ids = row_ids if causal else torch.cat([torch.arange(*keys) for _, keys in pairs])
        real, made = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
        return cls(len(pairs), row_ids, key_ids, real, made, row_ids[real], causal)

    def heads(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """[N, H, L, …] of [W, H, …]."""
        return x.index_select(0, ids).unflatten(0, (self.num, -1)).transpose(1, 2)

    def unpadded(self, heads: torch.Tensor) -> torch.Tensor:
        """[real rows, H, …] of [N, H, L, …]."""
        flat = heads.transpose(1, 2).flatten(0, 1)
        return flat.index_select(0, self.real) if len(self.made) else flat


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

    @cached_property
    def padded(self) -> tuple[Padded, ...]:
        """The calls of a kernel that takes rows of one length, those of own segments first."""
        alike: dict[tuple[bool, int, int], list[tuple[Span, Span]]] = {}
        for span in self.own:
            alike.setdefault((True, _bucket(span), 0), []).append((span, span))
        for rows, keys in self.seen:
            alike.setdefault((False, _bucket(rows), keys[1] - keys[0]), []).append((rows, keys))
        return tuple(Padded.of(pairs, causal) for (causal, _, _), pairs in alike.items())

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


def _bucket(span: Span) -> int:
    """Up to which length segments are padded beside this one: by less than a quarter, or 8 tokens."""
    length = span[1] - span[0]
    unit = max(8, 1 << max(length.bit_length() - 3, 0))
    return -(-length // unit) * unit
