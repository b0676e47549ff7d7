"""The way of a group through a critic: each distinct response once, each vote once, and no vote too many.

    responses -> distinct ones -> store -> source (k votes, one prefill) -> parse -> decided? stop : next vote -> store
                                          first those that decide a clean response, then the rest
                                  deadline of the response, deadline of the group: what is not in is invalid

Invariant: every response gets an answer within the group's deadline; a vote that failed is invalid and says why. Early
stop is exact: it never changes what the vote makes of a step (`votes.is_decided`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from capo_ray.config.credit import asks_once
from capo_ray.config.sections import CriticConfig
from capo_ray.critics.guarded import GuardedStore, StoreDoor
from capo_ray.critics.parse import parse_critique
from capo_ray.critics.store import CritiqueStore, request_key
from capo_ray.critics.tally import Tally
from capo_ray.prompts import load_rubric
from capo_ray.protocols import JudgeRequest, PartTimeout
from capo_ray.types import Critique, Problem, Provenance
from capo_ray.votes import first_wave, is_decided

FAILED = "failed: "
REFUSED = "refused: "
LATE = "deadline"
GRACE_S = 5.0
"""How long a cancelled request may take to leave."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One response put to a critic: what identifies the request, and what the source needs to send it."""

    problem: Problem
    steps: tuple[str, ...]
    key: str
    """Content hash of everything that shapes the answers, the vote's index excepted."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a critic."""

    text: str
    truncated: bool = False
    output_tokens: int = 0
    prompt_tokens: int = 0
    seed: int | None = None
    failure: str = ""
    """Why there is no answer; such a reply is never stored."""
    kind: str = FAILED
    """What the failure is: one that may pass (`FAILED`), a refusal that would come again, or lateness (`LATE`)."""


class VoteSource(Protocol):
    """Where votes come from; `votes` yields up to `num_votes` replies as each ends, and closing it aborts the rest."""

    model: str
    sampling: dict[str, object]

    def votes(self, asking: Asking, num_votes: int, num_held: int, num_fresh: int) -> AsyncGenerator[Reply, None]:
        """Replies beside the `num_held` from a store and the `num_fresh` that this source gave before.

        Raises `ValueError` on a response that cannot be asked about.
        """


@dataclass
class _Hearing:
    """The votes on one response as they come in."""

    asking: Asking
    num_votes: int
    held: list[Critique] = field(default_factory=list)
    fresh: list[Critique] = field(default_factory=list)
    failure: str = LATE

    @property
    def num_in(self) -> int:
        return len(self.held) + len(self.fresh)

    @property
    def flagged(self) -> list[frozenset[int]]:
        return [c.flagged for c in (*self.held, *self.fresh) if c.flagged is not None]


class Panel:
    """`protocols.Judge` over a source of votes."""

    def __init__(
        self,
        source: VoteSource,
        config: CriticConfig,
        *,
        vote: str,
        quorum: int,
        store: CritiqueStore | StoreDoor | None = None,
    ) -> None:
        self._source, self._config = source, config
        self._store = GuardedStore.around(store) if isinstance(store, CritiqueStore) else store
        self._vote, self._quorum = vote, quorum
        self._rubric = load_rubric(config.rubric)
        self._tally = Tally()

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """Up to `num_votes` critiques of each response, in vote order; fewer where the vote was already decided.

        `vote=greedy` takes one, at temperature 0. Identical responses share theirs. Raises `PartLost` only.
        """
        if not responses:
            return ()
        num_votes = 1 if asks_once(self._vote) else num_votes
        hearings = {r.steps: _Hearing(self._ask(problem, r.steps), num_votes) for r in responses}
        await self._recall(list(hearings.values()), num_votes)
        tasks = [asyncio.create_task(self._hear(hearing)) for hearing in hearings.values()]
        try:
            done, _ = await asyncio.wait(tasks, timeout=self._config.deadline_s, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _end(tasks)
        for hearing in hearings.values():
            self._number(hearing)
        await self._keep(list(hearings.values()))
        lost = [error for task in done if (error := task.exception()) is not None]
        if lost:
            raise lost[0]
        results = {steps: self._close(hearing) for steps, hearing in hearings.items()}
        self._tally.add_group(len(responses), len(results))
        return tuple(results[r.steps] for r in responses)

    def stats(self) -> dict[str, float]:
        """The critic's figures, `critic/…`: totals since the start."""
        return self._tally.figures() | (self._store.figures() if self._store is not None else {})

    def _ask(self, problem: Problem, steps: tuple[str, ...]) -> Asking:
        if problem.solution and not self._config.show_solution:
            problem = replace(problem, solution=None)
        key = request_key(problem, steps, self._rubric.text, self._source.model, self._source.sampling)
        return Asking(problem, steps, key)

    async def _hear(self, hearing: _Hearing) -> None:
        if self._is_over(hearing):
            return
        try:
            async with asyncio.timeout(self._config.critique_deadline_s or None):
                if await self._gather(hearing, self._first_wave(hearing)) and not self._is_over(hearing):
                    await self._gather(hearing, hearing.num_votes - hearing.num_in)
        except PartTimeout as error:
            hearing.failure = f"deadline: {error}"
        except TimeoutError:
            hearing.failure = "deadline of the response"
        except ValueError as error:
            hearing.failure = f"not asked: {error}"

    async def _gather(self, hearing: _Hearing, num_votes: int) -> bool:
        """Whether as many votes came in, or as decided it."""
        started, wanted = time.monotonic(), hearing.num_in + num_votes
        votes = self._source.votes(hearing.asking, num_votes, len(hearing.held), len(hearing.fresh))
        async with contextlib.aclosing(votes) as replies:
            async for reply in replies:
                hearing.fresh.append(self._read(hearing.asking, reply, time.monotonic() - started))
                if self._is_over(hearing):
                    return True
        if hearing.num_in < wanted:
            hearing.failure = "not answered"
        return hearing.num_in >= wanted

    def _first_wave(self, hearing: _Hearing) -> int:
        remaining = hearing.num_votes - hearing.num_in
        if not self._config.early_stop:
            return remaining
        return first_wave(hearing.flagged, remaining, len(hearing.asking.steps), self._vote, self._quorum)

    def _is_over(self, hearing: _Hearing) -> bool:
        remaining = hearing.num_votes - hearing.num_in
        if remaining <= 0:
            return True
        if not self._config.early_stop:
            return False
        return is_decided(hearing.flagged, remaining, len(hearing.asking.steps), self._vote, self._quorum)

    def _read(self, asking: Asking, reply: Reply, seconds: float) -> Critique:
        provenance = Provenance(
            model=self._source.model,
            prompt_hash=asking.key,
            vote_index=-1,
            seed=reply.seed,
            prompt_tokens=reply.prompt_tokens,
            output_tokens=reply.output_tokens,
            seconds=seconds,
        )
        if reply.failure:
            return Critique(None, None, reply.text, reply.kind + reply.failure, provenance)
        flagged, overall, reason = parse_critique(
            reply.text, len(asking.steps), self._rubric.name, truncated=reply.truncated
        )
        return Critique(flagged, overall, reply.text, reason, provenance)

    def _close(self, hearing: _Hearing) -> tuple[Critique, ...]:
        """The votes in their order, those that are missing as invalid ones."""
        ended_early = self._is_over(hearing) and hearing.num_in < hearing.num_votes
        votes = [*hearing.held, *hearing.fresh]
        if not ended_early:
            votes += [self._missing(hearing, i) for i in range(len(votes), hearing.num_votes)]
        self._tally.add_response(votes, early=ended_early)
        return tuple(votes)

    def _number(self, hearing: _Hearing) -> None:
        """Put the fresh votes in an order that depends on what they say and not on when they came."""
        order = sorted(hearing.fresh, key=lambda c: (_failed(c), _shuffled(hearing.asking.key, c.text)))
        hearing.fresh = [_numbered(c, len(hearing.held) + i) for i, c in enumerate(order)]

    async def _recall(self, hearings: Sequence[_Hearing], num_votes: int) -> None:
        """Take what the store holds of a group."""
        if self._store is not None:
            held = await self._store.read([h.asking.key for h in hearings], num_votes)
            for hearing in hearings:
                hearing.held = held.get(hearing.asking.key, [])

    async def _keep(self, hearings: Sequence[_Hearing]) -> None:
        """Give the store the answers that are new."""
        fresh = {h.asking.key: [c for c in h.fresh if not _failed(c)] for h in hearings}
        if self._store is not None and any(fresh.values()):
            await self._store.write({key: said for key, said in fresh.items() if said})

    def _missing(self, hearing: _Hearing, index: int) -> Critique:
        return Critique(None, None, "", hearing.failure, Provenance(self._source.model, hearing.asking.key, index))


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel what still runs and give it a bounded time to leave."""
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=GRACE_S)


def was_not_answered(critique: Critique) -> bool:
    """Whether the critic said nothing in time (and not: nothing readable, or refused, or was not asked)."""
    return not critique.valid and not critique.text and critique.reason.startswith((FAILED, LATE, "not answered"))


def _failed(critique: Critique) -> bool:
    """Whether this is the absence of an answer (and not an unreadable one)."""
    return critique.reason.startswith((FAILED, REFUSED, LATE))


def _numbered(critique: Critique, index: int) -> Critique:
    return replace(critique, provenance=replace(critique.provenance, vote_index=index))


def _shuffled(key: str, text: str) -> bytes:
    """A place in the order that is the same every time and favours no kind of text.

    First come or alphabetical order would put the short or the "No" ones first, and bias a smaller k read back later.
    """
    return hashlib.sha256(f"{key}\n{text}".encode("utf-8", "replace")).digest()
