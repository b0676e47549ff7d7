"""What a search asks: the policy for steps and responses, the critic for flags; both keep the account."""

from __future__ import annotations

import pkgutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from capo_ray.config.search import SearchBase
from capo_ray.protocols import Judge, JudgeRequest, Sampling, TextEngine
from capo_ray.types import Critique, Problem
from capo_ray.votes import step_weights


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a response: a step or all of it. `ends`: nothing follows; `cut`: for want of room."""

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    """Of all its tokens together, in nats, as they were drawn."""
    ends: bool
    cut: bool = False


@dataclass
class Spent:
    """What a search has cost so far. Tokens are those written, but for what the critic read.

    The policy's prompt and prefixes lie in the prefix cache and are not counted; a critic's prompt is counted whole for
    every judgement, once for all its votes, though most of it lies in the cache as well.
    """

    policy_tokens: int = 0
    critic_tokens: int = 0
    critic_prompt_tokens: int = 0
    num_draws: int = 0
    judged_steps: int = 0
    judgements: int = 0
    """Texts that were put to the critic, whose votes are one judgement."""


@dataclass(frozen=True, slots=True)
class Found:
    """A response that a search settled on, as its pieces; `figures`: what the search tells of itself."""

    pieces: tuple[Piece, ...]
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def num_tokens(self) -> int:
        return sum(len(piece.token_ids) for piece in self.pieces)

    @property
    def cut(self) -> bool:
        """Whether it ended for want of room."""
        return any(piece.cut for piece in self.pieces)


class Writer:
    """The policy on one problem. A draw's seed is `seed` + the number of draws before it; the first has `seed`."""

    def __init__(
        self,
        engine: TextEngine,
        decode: Callable[[Sequence[int]], str],
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        seed: int,
        spent: Spent,
        delimiter: str = "",
    ) -> None:
        self._engine, self._decode, self._prompt = engine, decode, tuple(prompt_ids)
        self._sampling, self._seed, self._spent, self._delimiter = sampling, seed, spent, delimiter

    async def step(self, path: Sequence[Piece]) -> Piece:
        """The next step after those of a path, its delimiter included; white space alone is no step and goes with it.

        Such a piece may be the last: then nothing but an end was drawn.
        """
        before = _ids(path)
        stops = (*self._sampling.stop_strings, self._delimiter)
        drawn: tuple[int, ...] = ()
        logprob = 0.0
        while True:
            said, finish = await self._draw((*before, *drawn), replace(self._sampling, stop_strings=stops))
            drawn, logprob = (*drawn, *said.token_ids), logprob + said.logprob
            text = self._decode((*before, *drawn))[len(self._decode(before)) :]
            ended = finish != "stop" or self._delimiter not in said.text or self._stopped(said.text)
            full = len(before) + len(drawn) >= self._sampling.max_tokens
            if text.strip() or ended or full:
                return Piece(text, drawn, logprob, ended or full, finish == "length" or (full and not ended))

    async def finish(self, path: Sequence[Piece]) -> Piece:
        """The rest of a response after a path, greedily."""
        before = _ids(path)
        greedy = replace(self._sampling, temperature=0.0, top_p=1.0)
        said, _ = await self._draw(before, greedy)
        return replace(said, text=self._decode((*before, *said.token_ids))[len(self._decode(before)) :])

    async def whole(self, num: int) -> tuple[Piece, ...]:
        """Responses from the beginning, which share the prompt's prefill."""
        seed = self._seed + self._spent.num_draws
        self._spent.num_draws += num
        done = await self._engine.generate(self._prompt, replace(self._sampling, n=num, seed=seed))
        self._spent.policy_tokens += sum(len(one.token_ids) for one in done)
        return tuple(
            Piece(one.text, tuple(map(int, one.token_ids)), float(sum(one.logprobs)), True, one.finish == "length")
            for one in done
        )

    async def _draw(self, before: Sequence[int], sampling: Sampling) -> tuple[Piece, str]:
        left = self._sampling.max_tokens - len(before)
        seed = self._seed + self._spent.num_draws
        self._spent.num_draws += 1
        asked = replace(sampling, n=1, max_tokens=left, seed=seed)
        (one,) = await self._engine.generate((*self._prompt, *before), asked)
        self._spent.policy_tokens += len(one.token_ids)
        ids = tuple(map(int, one.token_ids))
        return Piece(one.text, ids, float(sum(one.logprobs)), True, one.finish == "length"), one.finish

    def _stopped(self, text: str) -> bool:
        return any(stop in text for stop in self._sampling.stop_strings)


class Critic:
    """The critic tier on one problem, which is shown without its answer and solution."""

    def __init__(self, judge: Judge, problem: Problem, num_votes: int, spent: Spent) -> None:
        self._judge, self._num_votes, self._spent = judge, num_votes, spent
        self._problem = replace(problem, answer="", solution=None)

    async def weights(self, responses: Sequence[tuple[str, ...]]) -> list[tuple[float, ...] | None]:
        """For each response, given as its steps, the share of votes that flag each; None where no vote can be read."""
        votes = await self._judge.critique(self._problem, [JudgeRequest(steps) for steps in responses], self._num_votes)
        self._count(dict(zip(responses, votes, strict=True)))
        flagged = [[c.flagged for c in said if c.flagged is not None] for said in votes]
        return [
            step_weights(sets, len(steps), "average") if sets else None
            for sets, steps in zip(flagged, responses, strict=True)
        ]

    async def weight(self, steps: Sequence[str], place: int) -> float | None:
        """The share of votes that flag the step at this place; None where no vote can be read."""
        self._spent.judged_steps += 1
        (weights,) = await self.weights([tuple(steps)])
        return None if weights is None else weights[place]

    def _count(self, judged: dict[tuple[str, ...], Sequence[Critique]]) -> None:
        """Put into the account what distinct responses cost: equal ones share their votes."""
        for said in judged.values():
            self._spent.judgements += 1
            self._spent.critic_tokens += sum(c.provenance.output_tokens for c in said)
            self._spent.critic_prompt_tokens += max((c.provenance.prompt_tokens for c in said), default=0)


@dataclass(frozen=True, slots=True)
class Asking:
    """One problem and whom a search may ask about it."""

    writer: Writer
    critic: Critic | None
    cut_steps: Callable[[str], tuple[str, ...]]
    """The steps of a whole response."""
    answer_of: Callable[[str], str | None]
    """The final answer in a response, spelt so that equal ones are equal; None where it has none."""
    spent: Spent


async def look_for(asking: Asking, search: SearchBase) -> Found:
    """What the search of this section finds."""
    rule: Callable[[Asking, Any], Awaitable[Found]] = pkgutil.resolve_name(search.rule)
    return await rule(asking, search)


def _ids(path: Sequence[Piece]) -> tuple[int, ...]:
    return tuple(token for piece in path for token in piece.token_ids)
