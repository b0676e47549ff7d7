"""The loop of turns: every sibling plays alone, and as fast as its own replies and turns come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from capo_ray.config.environment import REPLY_SLOT, PlayedBase
from capo_ray.config.seeds import draw_seed
from capo_ray.environments.reply import Reply
from capo_ray.protocols import PartLost, Played, Sampling, TextEngine, Tokenizer
from capo_ray.types import Completion, Problem, Turn, Verdict

Encode = Callable[[Problem], Sequence[int]]
FAILED = "error: "
"""What the policy reads of a failure begins with it, and goes on with its kind alone: timeout, crash."""


class Source(Protocol):
    """Who replies."""

    async def ask(self, problem: Problem, said: Sequence[str]) -> Reply | str: ...

    def stats(self) -> dict[str, float]: ...


@dataclass
class _Episode:
    """One response under way: `said` are the turns that the environment has answered; `state` is what it left."""

    response: Completion
    state: str
    said: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    last: str = ""


class Playing:
    """`protocols.Environment` over a function that replies."""

    def __init__(
        self,
        config: PlayedBase,
        source: Source,
        engine: TextEngine,
        tokenizer: Tokenizer,
        encode: Encode,
        frame: tuple[str, str] | None,
        max_len: int,
    ) -> None:
        self._config, self._source, self._engine, self._tokenizer = config, source, engine, tokenizer
        self._encode, self._max_len = encode, max_len
        before, after = config.reply_template.split(REPLY_SLOT)
        self._before, self._after = frame or (before, after)
        self._is_chat = frame is not None

    def figures(self) -> dict[str, float]:
        """As those of who replies."""
        return self._source.stats()

    async def play(self, problem: Problem, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Played, ...]:
        """`sampling.n` episodes, the first turns drawn in one call; an opening's text stands behind the question."""
        opening = await self._source.ask(problem, ())
        if isinstance(opening, str):
            raise PartLost(f"environment.kind={self._config.kind} has no opening for problem {problem.id}: {opening}")
        if opening.text:
            prompt_ids = self._encode(replace(problem, prompt=problem.prompt + opening.text))
        prompt = tuple(prompt_ids)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, self._max_len - len(prompt)))
        if sampling.max_tokens < 1:
            raise PartLost(f"problem {problem.id} with its opening has {len(prompt)} tokens, and no room for a turn")
        first = replace(sampling, max_tokens=min(sampling.max_tokens, self._config.turn_tokens))
        turns = await self._engine.generate(prompt, first)
        episodes = [_Episode(turn, opening.state, last=turn.text) for turn in turns]
        playing = [asyncio.ensure_future(self._go_on(problem, prompt, e, sampling, i)) for i, e in enumerate(episodes)]
        try:
            return tuple(await asyncio.gather(*playing))
        finally:
            for one in playing:  # the siblings of an episode that was lost would play on for a group that is dropped
                one.cancel()

    async def _go_on(
        self, problem: Problem, prompt: tuple[int, ...], episode: _Episode, sampling: Sampling, index: int
    ) -> Played:
        """The episode played to its end, from its first turn on."""
        config = self._config
        while True:
            told = await self._source.ask(problem, (*episode.said, episode.last))
            if isinstance(told, str):
                kind = told.partition(":")[0]
                if config.on_failure == "invalid":
                    return self._end(prompt, episode, Reply(legal=False), Verdict(None, f"environment: {told}"))
                told = Reply(FAILED + kind, episode.state, legal=False)
            else:
                episode.said = (*episode.said, episode.last)
            read, ends, text = self._words(told.text, int(episode.response.token_ids[-1]))
            left = sampling.max_tokens - len(episode.response.token_ids) - len(read)
            if told.done or len(episode.turns) + 1 == config.max_turns or left < 1:
                return self._end(prompt, episode, told, self._verdict(told))
            self._note(episode, told)
            episode.response = episode.response.reads(read, ends, text)
            seed = None if sampling.seed is None else draw_seed(sampling.seed, "turn", str(index), len(episode.turns))
            asked = replace(sampling, n=1, max_tokens=min(left, config.turn_tokens), seed=seed)
            (turn,) = await self._engine.generate((*prompt, *episode.response.token_ids.tolist()), asked)
            episode.response, episode.last = episode.response.then(turn), turn.text

    def _note(self, episode: _Episode, told: Reply) -> None:
        """Keep what the environment says of the turn, and that the policy is in another state now."""
        episode.turns = (*episode.turns, Turn(episode.state, told.reward, told.legal))
        episode.state = told.state

    def _end(self, prompt: tuple[int, ...], episode: _Episode, told: Reply, verdict: Verdict | None) -> Played:
        self._note(episode, told)
        response = episode.response if told.done else replace(episode.response, finish="length")
        return Played(prompt, response, episode.turns, verdict)

    def _verdict(self, told: Reply) -> Verdict | None:
        """How an episode ended, or None where the verifier says so."""
        if told.outcome is not None:
            return Verdict(int(told.outcome), "reached" if told.outcome else "missed")
        if self._config.tells_outcome:
            return Verdict(0, "unfinished: the turns or tokens of a response were over")
        return None

    def _words(self, reply: str, last_id: int) -> tuple[list[int], tuple[int, ...], str]:
        """The tokens that the policy reads, the characters that each completes, and the text.

        A chat template's words begin with the end of the turn, which the policy mostly sampled: then its last token.
        """
        pieces = [(self._before, True), (reply, False), (self._after, True)]
        ids = self._tokenizer.encode_pieces([piece for piece in pieces if piece[0]], begins=False)
        if self._is_chat and ids[:1] == [last_id]:
            ids = ids[1:]
        text, ends = self._tokenizer.decode_pieces(ids)
        return ids, ends, text
