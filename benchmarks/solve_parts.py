"""Who plays in the benchmark of searches: judges of a set precision and recall, engines that remember, one world.

pool      responses of each problem, drawn once and judged once by each judge: majority@n and best of n for every n
walks     the navigator under one budget after another; what was drawn or judged under a smaller one is not again
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from plain_torch.engine import PlainEngine

from capo_ray.answers import extract_answer, fast_equal
from capo_ray.config.search import NavigatorSearch, SearchBase
from capo_ray.config.seeds import draw_seed
from capo_ray.config.solve import SolveConfig
from capo_ray.config.steps import DEFAULT_STEPS
from capo_ray.evaluation import spelt
from capo_ray.flow.answering import ResponseFile
from capo_ray.flow.solving import Solve, Solving
from capo_ray.prompts import frame_question
from capo_ray.protocols import Judge, JudgeRequest, Sampling, TextEngine, Tokenizer
from capo_ray.search import Critic, Spent
from capo_ray.search.whole import commonest, fewest
from capo_ray.steps import split_text
from capo_ray.types import Completion, Critique, Problem, Provenance, Verdict, VersionRun

Critiques = tuple[tuple[Critique, ...], ...]
Truth = Callable[[Problem, Sequence[str]], frozenset[int]]


class Compared:
    """A verifier in this process: answers compared as far as plain numbers go."""

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        found = [extract_answer(text) for text in responses]
        return tuple(Verdict(int(bool(one and fast_equal(answer, one))), "compared", one) for one in found)


class Oracle:
    """A judge that knows which steps are wrong, and errs so that its flags have this precision and recall.

    Right steps are flagged as often as the precision asks for where `wrong_frac` of the steps are wrong. Whether it
    errs depends on the steps so far alone: asked again it says the same. It writes and reads nothing.
    """

    def __init__(self, truth: Truth, precision: float, recall: float, wrong_frac: float) -> None:
        self._truth, self._recall = truth, recall
        self._false_alarm = recall * wrong_frac * (1 - precision) / (precision * (1 - wrong_frac))

    async def critique(self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int) -> Critiques:
        """One vote for each response."""
        return tuple((self._vote(problem, r.steps),) for r in responses)

    def _vote(self, problem: Problem, steps: tuple[str, ...]) -> Critique:
        wrong = self._truth(problem, steps)
        rates = [self._recall if i in wrong else self._false_alarm for i in range(len(steps))]
        flagged = frozenset(i for i, rate in enumerate(rates) if _chance(problem.prompt, steps[: i + 1]) < rate)
        return Critique(flagged, not flagged, "", "", Provenance("oracle", "", 0))


def _chance(question: str, steps: Sequence[str]) -> float:
    """A number in [0, 1) of these texts."""
    told = hashlib.sha256("\x00".join((question, *steps)).encode()).digest()
    return int.from_bytes(told[:4], "big") / 2**32


class Remembering:
    """A judge that is asked once for each response."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._said: dict[tuple[str, tuple[str, ...], int], tuple[Critique, ...]] = {}

    async def critique(self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int) -> Critiques:
        """As the judge's; only for responses that come with no more than their steps."""
        keys = [(problem.id, r.steps, num_votes) for r in responses]
        new = {key: r for key, r in zip(keys, responses, strict=True) if key not in self._said}
        if new:
            said = await self._judge.critique(problem, list(new.values()), num_votes)
            self._said.update(zip(new, said, strict=True))
        return tuple(self._said[key] for key in keys)


class RememberingEngine:
    """An engine that is asked once for each seeded draw; stop strings are for `Stopping` below it."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self._said: dict[tuple[tuple[int, ...], Sampling], tuple[Completion, ...]] = {}

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`."""
        # A greedy draw has no use of its seed, and is the same whatever number it has in a search.
        key = tuple(prompt_ids), sampling if sampling.temperature else replace(sampling, seed=0)
        if key not in self._said:
            self._said[key] = await self._engine.generate(prompt_ids, sampling)
        return self._said[key]


class Stopping:
    """A plain engine that stops at strings: at the token that spells one, and cuts off what comes after others."""

    def __init__(self, engine: PlainEngine) -> None:
        self._engine = engine

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`."""
        stops = sampling.stop_strings
        ids = [self._engine.tokenizer.encode(stop) for stop in stops]
        tokens = tuple(found[0] for found in ids if len(found) == 1)
        asked = replace(sampling, stop_strings=(), stop_token_ids=(*sampling.stop_token_ids, *tokens))
        return tuple(_cut(one, stops) for one in await self._engine.generate(prompt_ids, asked))


def _cut(one: Completion, stops: Sequence[str]) -> Completion:
    places = [one.text.find(stop) + len(stop) for stop in stops if stop in one.text]
    if not places:
        return one
    n = int(np.searchsorted(one.char_ends, min(places))) + 1
    return replace(
        one, token_ids=one.token_ids[:n], logprobs=one.logprobs[:n], char_ends=one.char_ends[:n],
        text=one.text[: one.char_ends[n - 1]], versions=(VersionRun(0, n),), finish="stop",
    )  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """One response of the pool."""

    steps: tuple[str, ...]
    answer: str | None
    """Spelt so that equal ones are equal."""
    right: bool
    num_tokens: int
    logprob: float


@dataclass(frozen=True)
class Point:
    """One search under one budget: whether it is right on each problem, and its cost, the mean over problems."""

    setting: int
    rewards: dict[str, float]
    policy_tokens: float
    critic_tokens: float = 0.0
    critic_prompt_tokens: float = 0.0

    @property
    def written(self) -> float:
        """Tokens that policy and critic wrote."""
        return self.policy_tokens + self.critic_tokens

    @property
    def processed(self) -> float:
        """The same, and what the critic read."""
        return self.written + self.critic_prompt_tokens


class World:
    """One policy on one set of problems, the pool of its responses, and its searches."""

    def __init__(
        self, config: SolveConfig, problems: list[Problem], engine: TextEngine, tokenizer: Tokenizer, draws: SearchBase
    ) -> None:
        self.config, self.problems, self._draws = config, problems, draws
        self._engine, self._tokenizer = RememberingEngine(engine), tokenizer
        self.pool: dict[str, list[Drawn]] = {}

    async def draw(self, num: int) -> None:
        """Draw the pool."""

        async def one(problem: Problem) -> list[Drawn]:
            limit = self.config.rollout.max_response_tokens
            stops = self.config.model.stop_strings
            seed = draw_seed(0, "pool", problem.id)
            sampling = Sampling(self._draws.temperature, self._draws.top_p, limit, n=num, seed=seed, stop_strings=stops)
            return [_drawn(problem, c) for c in await self._engine.generate(self._encode(problem), sampling)]

        drawn = await asyncio.gather(*map(one, self.problems))
        self.pool = dict(zip([p.id for p in self.problems], drawn, strict=True))

    async def greedy(self) -> Point:
        """The likeliest response to each problem."""
        limit, stops = self.config.rollout.max_response_tokens, self.config.model.stop_strings
        sampling = Sampling(0.0, max_tokens=limit, stop_strings=stops)
        said = await asyncio.gather(*(self._engine.generate(self._encode(p), sampling) for p in self.problems))
        drawn = {p.id: _drawn(p, one) for p, (one,) in zip(self.problems, said, strict=True)}
        tokens = sum(one.num_tokens for one in drawn.values()) / len(drawn)
        return Point(1, {p: float(one.right) for p, one in drawn.items()}, tokens)

    def sampled(self) -> dict[str, float]:
        """How often a response of the pool is right, for each problem."""
        return {p: sum(d.right for d in drawn) / len(drawn) for p, drawn in self.pool.items()}

    def majority(self, n: int) -> Point:
        """The commonest of the first n answers."""
        rewards = {p: float(d[commonest([one.answer for one in d[:n]])].right) for p, d in self.pool.items()}
        return Point(n, rewards, self._tokens(n))

    async def best(self, n: int, judge: Judge, num_votes: int) -> Point:
        """The one with the fewest flags of the first n."""

        async def one(problem: Problem) -> tuple[float, Spent]:
            drawn, spent = self.pool[problem.id][:n], Spent()
            weights = await Critic(judge, problem, num_votes, spent).weights([d.steps for d in drawn])
            place = fewest([None if w is None else sum(w) for w in weights], [d.logprob for d in drawn])
            return float(drawn[place].right), spent

        told = await asyncio.gather(*map(one, self.problems))
        rewards = {p.id: right for p, (right, _) in zip(self.problems, told, strict=True)}
        wrote, read = (
            sum(getattr(spent, name) for _, spent in told) / len(told)
            for name in ("critic_tokens", "critic_prompt_tokens")
        )
        return Point(n, rewards, self._tokens(n), wrote, read)

    async def walk(self, search: NavigatorSearch, judge: Judge, num_votes: int) -> Point:
        """The navigator under the budget of its section."""
        rows = await self._solve(search, judge, num_votes)
        told = {p: float(row["reward"]) for p, row in rows.items()}
        costs = (
            sum(row[name] for row in rows.values()) / len(rows)
            for name in ("policy_tokens", "critic_tokens", "critic_prompt_tokens")
        )
        return Point(search.budget, told, *costs)

    async def _solve(self, search: SearchBase, judge: Judge, num_votes: int) -> dict[str, dict[str, Any]]:
        how = Solve(
            search, DEFAULT_STEPS, "\n\n", num_votes,
            self.config.rollout.max_response_tokens, self.config.model.max_model_len, 0,
            stop_strings=self.config.model.stop_strings,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            file = ResponseFile(Path(folder) / "rows.jsonl")
            many = len(self.problems)
            solving = Solving(how, self._engine, self._tokenizer, judge, self._encode, file, in_flight=many)  # type: ignore[arg-type]
            await solving.solve(self.problems, Compared(), "math")
            return {p.id: file.of(p.source, p.id)[0] for p in self.problems}

    def wrong_frac(self, truth: Truth) -> float:
        """The share of wrong steps in the pool."""
        told = [(len(truth(p, d.steps)), len(d.steps)) for p in self.problems for d in self.pool[p.id]]
        return sum(wrong for wrong, _ in told) / sum(steps for _, steps in told)

    async def quality(self, truth: Truth, judge: Judge, num_votes: int) -> dict[str, float]:
        """Precision and recall of a judge's steps of weight 1/2 and more on the pool."""
        hits = flags = wrong = 0
        for problem in self.problems:
            steps = [d.steps for d in self.pool[problem.id]]
            for one, weights in zip(
                steps, await Critic(judge, problem, num_votes, Spent()).weights(steps), strict=True
            ):
                flagged = {i for i, w in enumerate(weights or ()) if w >= 0.5}
                true = truth(problem, one)
                hits, flags, wrong = hits + len(flagged & true), flags + len(flagged), wrong + len(true)
        return {"precision": hits / max(1, flags), "recall": hits / max(1, wrong)}

    def _tokens(self, n: int) -> float:
        return sum(sum(one.num_tokens for one in drawn[:n]) for drawn in self.pool.values()) / len(self.pool)

    def _encode(self, problem: Problem) -> Sequence[int]:
        return frame_question(self._tokenizer, problem.prompt, self.config.model)


def _drawn(problem: Problem, one: Completion) -> Drawn:
    answer = extract_answer(one.text)
    return Drawn(
        steps=split_text(one.text, DEFAULT_STEPS) or ("",),
        answer=None if answer is None else spelt(answer),
        right=bool(answer and fast_equal(problem.answer, answer)),
        num_tokens=len(one.token_ids),
        logprob=float(sum(one.logprobs)),
    )
