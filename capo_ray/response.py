"""What the policy said to one prompt: in one turn, or in several with an environment's words between them.

    prompt | says ... | reads ... | says ... | reads ... | says ...        T tokens, all of them seen by the policy
             acted[0]               acted[1]               acted[2]        A of them sampled by it, one span a turn

What it read is context, as the prompt is. A logprob, an entropy, a version there is of sampled tokens alone, and so is
all credit and all loss: who counts tokens of those [A] cannot count what the policy did not write. In one turn all was
sampled: `acted` is empty and A = T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from capo_ray.arrays import ByValue, FloatArray, IntArray, freeze_fields

Finish = Literal["stop", "length", "aborted"]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class VersionRun:
    """A run of tokens sampled under one weight version: those from the previous run's end up to `end`."""

    version: int
    end: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What an environment says of one turn: the key of the state it was taken in, its own reward, if it was a move."""

    state: str
    reward: float = 0.0
    legal: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Completion(ByValue):
    """What an engine returns for one sampled continuation (T tokens, end-of-sequence included when sampled).

    `logprobs[A]` are at the sampling temperature; `char_ends[T]` is the length of `text` once token t is decoded
    (non-decreasing; a token that completes no character repeats the value before it; special tokens add none).
    `entropies[A]` in nats, of the distribution each token was drawn from; empty unless asked for. Ends of `versions`
    count sampled tokens.
    """

    token_ids: IntArray
    logprobs: FloatArray
    char_ends: IntArray
    text: str
    versions: tuple[VersionRun, ...]
    finish: Finish
    entropies: FloatArray = ()  # type: ignore[assignment]
    acted: tuple[Span, ...] = ()
    """The tokens that the policy sampled, one span a turn; (): all of them, in one turn."""

    def __post_init__(self) -> None:
        ints, floats = (np.int32,), (np.float32,)
        freeze_fields(self, token_ids=ints, char_ends=ints, logprobs=floats, entropies=floats)

    @property
    def turns(self) -> tuple[Span, ...]:
        """`acted`, told for one turn too."""
        return self.acted or (((0, len(self.token_ids)),) if len(self.token_ids) else ())

    @property
    def num_sampled(self) -> int:
        """A."""
        return sum(end - start for start, end in self.acted) if self.acted else len(self.token_ids)

    def sampled(self) -> npt.NDArray[np.bool_]:
        """[T]: which tokens the policy sampled."""
        mask = np.zeros(len(self.token_ids), dtype=np.bool_)
        for start, end in self.turns:
            mask[start:end] = True
        return mask

    def owned(self) -> Completion:
        """The same with arrays of its own: those that came over the wire may hold all that they came with."""
        arrays = {name: getattr(self, name).copy() for name in ("token_ids", "logprobs", "char_ends", "entropies")}
        return replace(self, **arrays)

    def reads(self, token_ids: Sequence[int], char_ends: Sequence[int], text: str) -> Completion:
        """With an environment's words behind it, which nobody sampled."""
        return replace(
            self,
            token_ids=np.concatenate((self.token_ids, np.asarray(token_ids, np.int32))),
            char_ends=np.concatenate((self.char_ends, np.asarray(char_ends, np.int32) + len(self.text))),
            text=self.text + text,
            acted=self.turns,
        )

    def begins(self, count: int) -> Completion:
        """Its first `count` tokens, of one turn."""
        if self.acted:
            raise ValueError("a response of several turns has no beginning of its own")
        return replace(
            self,
            token_ids=self.token_ids[:count],
            logprobs=self.logprobs[:count],
            char_ends=self.char_ends[:count],
            text=self.text[: self.char_ends[count - 1]] if count else "",
            versions=tuple(VersionRun(run.version, min(run.end, count)) for run in self.versions),
            entropies=self.entropies[:count],
        )

    def then(self, said: Completion) -> Completion:
        """With the policy's next turn behind it, whose `finish` is that of both."""
        length, count = len(self.token_ids), self.num_sampled
        return replace(
            self,
            token_ids=np.concatenate((self.token_ids, said.token_ids)),
            logprobs=np.concatenate((self.logprobs, said.logprobs)),
            char_ends=np.concatenate((self.char_ends, said.char_ends + len(self.text))),
            text=self.text + said.text,
            versions=(*self.versions, *(VersionRun(run.version, run.end + count) for run in said.versions)),
            finish=said.finish,
            entropies=np.concatenate((self.entropies, said.entropies)),
            acted=(*self.turns, *((start + length, end + length) for start, end in said.turns)),
        )

    def over_tokens(self, row: FloatArray) -> FloatArray:
        """[T]: numbers of sampled tokens [A], and 0 for those that were read; none stay none."""
        if not self.acted or not len(row):
            return row
        each = np.zeros(len(self.token_ids), dtype=row.dtype)
        each[self.sampled()] = row
        return each

    def sampled_only(self, steps: Sequence[Span]) -> tuple[Completion, tuple[Span, ...]]:
        """The response without the tokens that were read, and its steps within it; they as they are in one turn."""
        if not self.acted:
            return self, tuple(steps)
        mask = self.sampled()
        before = np.concatenate(([0], np.cumsum(mask))).tolist()
        acted = tuple((before[start], before[end]) for start, end in self.acted)
        kept = replace(self, token_ids=self.token_ids[mask], char_ends=self.char_ends[mask], acted=acted)
        return kept, tuple((before[start], before[end]) for start, end in steps)
