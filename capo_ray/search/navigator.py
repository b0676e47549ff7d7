"""Greedy search over steps with backtracking (2310.10080, from its description; what is ours is marked).

    P = []                                     judge(P + s), by the votes that flag the *last* step s:
    draw up to `breadth` steps after P           none                   positive: P + s, and on
      none positive but a neutral one            less than half         neutral
        -> the likeliest neutral one             half or more           negative
      all negative -> take P's last step back, and forbid its text there
    `budget` steps judged -> the rest of the response greedily

Ours: votes as classes; a verdict that cannot be read is neutral, since it says nothing; a text that was judged at a
place is not judged there again; a critic that was taught on whole solutions is shown the rest as well, as the policy
would write it greedily (`shows`), and still only its word on s is read; ties go to the step drawn first; where the root
itself has negative steps alone it is drawn from again, and the search ends when that brings nothing new.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

from capo_ray.config.search import NavigatorSearch
from capo_ray.search.asking import Asking, Critic, Found, Piece

Weigh = Callable[[Sequence[Piece]], Awaitable[float | None]]
"""The share of votes that flag the last of these steps; None where none can be read."""


class Verdict(Enum):
    """What the critic makes of a step."""

    POSITIVE = "positive"
    NEUTRAL = "neutral"
    NEGATIVE = "negative"


def verdict_of(weight: float | None) -> Verdict:
    """The class of a step that this share of the votes flags; None: no vote could be read."""
    if weight is None:
        return Verdict.NEUTRAL
    if weight == 0:
        return Verdict.POSITIVE
    return Verdict.NEUTRAL if weight < 0.5 else Verdict.NEGATIVE


class Hands(Protocol):
    """Who draws and who weighs; a test plays both from a tree."""

    async def step(self, path: Sequence[Piece]) -> Piece:
        """A step after those of the path."""

    async def finish(self, path: Sequence[Piece]) -> Piece:
        """The rest, greedily."""


@dataclass
class Walk:
    """A search under way: the path, and what is known of the steps at each place that was visited."""

    hands: Hands
    weigh: Weigh
    breadth: int
    budget: int
    judged: int = 0
    backtracks: int = 0

    def __post_init__(self) -> None:
        self.path: list[Piece] = []
        self._known: dict[tuple[str, ...], dict[str, Verdict]] = {}

    async def run(self) -> bool:
        """Whether the path came to an end of its own; otherwise the budget is spent, or nothing new is drawn."""
        while not (self.path and self.path[-1].ends):
            chosen, num_new = await self._choose()
            if chosen is not None:
                self.path.append(chosen)
            elif self.judged >= self.budget or not (self.path or num_new):
                return False
            elif self.path:
                taken = self.path.pop()
                self._here()[taken.text] = Verdict.NEGATIVE
                self.backtracks += 1
        return True

    async def _choose(self) -> tuple[Piece | None, int]:
        """The step to go on with, None where there is none; and how many steps were judged for it."""
        known, neutral, before = self._here(), list[Piece](), self.judged
        for _ in range(self.breadth):
            if self.judged >= self.budget:
                return None, self.judged - before
            piece = await self.hands.step(self.path)
            verdict = await self._judge(piece, known)
            if verdict is Verdict.POSITIVE:
                return piece, self.judged - before
            if verdict is Verdict.NEUTRAL:
                neutral.append(piece)
        return max(neutral, key=lambda piece: piece.logprob, default=None), self.judged - before

    async def _judge(self, piece: Piece, known: dict[str, Verdict]) -> Verdict:
        if not piece.text.strip():  # an end without a step: as good as the steps before it, which were accepted
            return Verdict.POSITIVE if self.path else Verdict.NEGATIVE
        if piece.text not in known:
            known[piece.text] = verdict_of(await self.weigh([*self.path, piece]))
            self.judged += 1
        return known[piece.text]

    def _here(self) -> dict[str, Verdict]:
        return self._known.setdefault(tuple(step.text for step in self.path), {})


async def navigate(asking: Asking, search: NavigatorSearch) -> Found:
    """The response at the end of the walk."""
    assert asking.critic is not None, "the section says that it asks the critic"
    weigh = partial(_weigh, asking, asking.critic, search.shows == "whole")
    walk = Walk(asking.writer, weigh, search.breadth, search.budget)
    ended = await walk.run()
    rest = () if ended else (await asking.writer.finish(walk.path),)
    figures = {"backtracks": float(walk.backtracks), "exhausted": float(not ended)}
    return Found((*walk.path, *rest), figures)


async def _weigh(asking: Asking, critic: Critic, whole: bool, steps: Sequence[Piece]) -> float | None:
    """The weight of the last step, behind which a critic of whole solutions is shown the policy's own rest."""
    texts, place = [step.text for step in steps], len(steps) - 1
    if whole and not steps[-1].ends:
        rest = await asking.writer.finish(steps)
        texts += asking.cut_steps(rest.text)
    return await critic.weight(texts, place)
