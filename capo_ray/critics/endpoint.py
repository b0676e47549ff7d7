"""A critic behind any OpenAI-compatible chat API.

    prompt text (escaped, fenced) -> POST {base_url}/chat/completions, n votes -> replies
                                     retries in a budget, hedges, breaker; the group's deadline above all
                                     too long for the server's context -> once more with the room that it names

Invariants
- What the server says of a failure stands in the critique's reason, shortened, the key blotted out.
- The key comes from a file or the environment at the time of use; it is in no config, repr, error or pickle, and
   goes to no address but the configured one (redirects are not followed).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from capo_ray.config.credit import asks_once
from capo_ray.config.sections import CriticConfig
from capo_ray.critics.grammar import verdict_regex
from capo_ray.critics.guarded import StoreDoor
from capo_ray.critics.key import read_key
from capo_ray.critics.panel import FAILED, LATE, REFUSED, Asking, Panel, Reply
from capo_ray.critics.replies import MAX_REPLY_BYTES, RequestFailed, read_replies, refusal
from capo_ray.critics.retries import Breaker, RetryBudget, backoff_s
from capo_ray.critics.room import has_context_words, least_answer_tokens, room_from
from capo_ray.critics.store import CritiqueStore
from capo_ray.prompts import build_critic_text, load_rubric

CONNECT_S = 10.0


@dataclass
class _Post:
    """A request under way: its body, and the fewest tokens that its answers need."""

    body: dict[str, Any]
    least: int
    shortened: bool = False

    @property
    def num_votes(self) -> int:
        return int(self.body.get("n", 1))


class EndpointSource:
    """Votes from an API."""

    def __init__(self, config: CriticConfig, *, greedy: bool) -> None:
        endpoint = config.endpoint
        base_url = endpoint.base_url.strip().rstrip("/")
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(
                "critic.endpoint.base_url must be http(s)://host[:port]/path, without user or query"
                + (f" (got no http:// or https:// before {base_url})" if base_url and "//" not in base_url else "")
            )
        if not endpoint.model:
            raise ValueError("critic.backend=endpoint needs critic.endpoint.model, the model's name there (got none)")
        self._config, self._endpoint = config, endpoint
        self._key = read_key(endpoint)
        self._url, self._models_url = base_url + "/chat/completions", base_url + "/models"
        self._path = parts.path + "/chat/completions"
        self._limit_s = endpoint.request_limit_s(config.max_tokens)
        self._last_error = ""
        self._rubric = load_rubric(config.rubric)
        self._temperature = 0.0 if greedy else config.temperature
        self._budget, self._rng = RetryBudget(), random.Random()
        self._breaker = Breaker(endpoint.breaker_failures, endpoint.breaker_open_s)
        self._session: aiohttp.ClientSession | None = None
        self._slots: asyncio.Semaphore | None = None
        self.model = f"{parts.hostname}/{endpoint.model}"
        self.sampling: dict[str, object] = {
            "temperature": self._temperature,
            "top_p": 1.0 if greedy else config.top_p,
            "max_tokens": config.max_tokens,
            "constrain": config.constrain,
        }
        if endpoint.parameters != "plain":
            self.sampling["parameters"] = endpoint.parameters

    @property
    def counts(self) -> dict[str, float]:
        """Retries (hedges included) and openings of the breaker."""
        return {
            "critic/retries_total": float(self._budget.spent),
            "critic/breaker_opened_total": float(self._breaker.times_opened),
        }

    async def votes(self, asking: Asking, num_votes: int, num_held: int, num_fresh: int) -> AsyncGenerator[Reply, None]:
        """The replies as each request ends; closing this cancels the others. A failed request is a failed reply."""
        body, missing, complete = self._body(asking), num_votes, True
        least = min(self._config.max_tokens, least_answer_tokens(self._rubric.name, len(asking.steps)))
        size = self._endpoint.votes_per_request or num_votes
        pending = {self._send(body, min(size, num_votes - at), least) for at in range(0, num_votes, size)}
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for reply in [reply for task in done for reply in task.result()][:missing]:
                    missing -= 1
                    complete &= not reply.failure
                    yield reply
                if not pending and missing and complete and size > 1:
                    # A server that ignores `n` gave one choice: the rest is asked for one by one.
                    size = 1
                    pending = {self._send(body, 1, least) for _ in range(missing)}
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _send(self, body: dict[str, Any], n: int, least: int) -> asyncio.Task[list[Reply]]:
        return asyncio.create_task(self._request(_Post({**body, "n": n} if n > 1 else body, least)))

    def _body(self, asking: Asking) -> dict[str, Any]:
        text = build_critic_text(
            rubric=self._config.rubric,
            question=asking.problem.prompt,
            solution=asking.problem.solution,
            steps=asking.steps,
        )
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": text}],
            self._limit_name: self._config.max_tokens,
        }
        if self._endpoint.parameters == "plain":
            body |= {"temperature": self._temperature, "top_p": self.sampling["top_p"]}
        if self._config.constrain:
            body["structured_outputs"] = {"regex": verdict_regex(len(asking.steps), self._rubric.name)}
        return body

    @property
    def _limit_name(self) -> str:
        return "max_tokens" if self._endpoint.parameters == "plain" else "max_completion_tokens"

    async def _request(self, post: _Post) -> list[Reply]:
        """The replies of one request, with retries; one failed reply per vote when all is in vain."""
        reason, kind = f"circuit open (the last error: {self._last_error})", FAILED
        attempt = 0
        while self._breaker.allows():
            try:
                replies = await self._hedged(post.body)
            except RequestFailed as error:
                reason, kind = str(error), error.kind
                self._judge_failure(error)
                if (shorter := await self._shortened(post, error)) is not None:
                    post = shorter
                    continue
                last = attempt == self._endpoint.max_retries
                if not error.again or last or not self._budget.spend():
                    break
                await asyncio.sleep(backoff_s(attempt, self._endpoint.retry_wait_s, error.wait_s, self._rng))
                attempt += 1
            except asyncio.CancelledError:
                self._breaker.abandoned()
                raise
            else:
                self._breaker.succeeded()
                return replies
        return [Reply("", failure=reason, kind=kind)] * post.num_votes

    def _judge_failure(self, error: RequestFailed) -> None:
        """A server that refuses is up; anything else counts towards the breaker."""
        if error.kind == REFUSED:
            self._breaker.succeeded()
        else:
            self._last_error = str(error)
            self._breaker.failed(error.wait_s or 0.0)

    async def _shortened(self, post: _Post, error: RequestFailed) -> _Post | None:
        """The request with as many answer tokens as the server has room for; None where that was not what it said.

        Raises nothing: where the room is below what an answer needs, the request is not sent again.
        """
        if error.kind != REFUSED or post.shortened or not has_context_words(error.words):
            return None
        num_chars = len(post.body["messages"][0]["content"])
        room = room_from(error.words, num_chars)
        if room is None:
            room = room_from(error.words, num_chars, await self._context())
        if room is None or room < post.least:
            return None
        return replace(post, body={**post.body, self._limit_name: min(room, self._config.max_tokens)}, shortened=True)

    async def _context(self) -> int | None:
        """The model's context in tokens as the server lists it; None where it does not."""
        session, _ = self._connect()
        try:
            async with (
                asyncio.timeout(CONNECT_S),
                session.get(self._models_url, headers=self._headers(), allow_redirects=False) as response,
            ):
                models = json.loads(await response.content.read(MAX_REPLY_BYTES))["data"]
            own = [m for m in models if m.get("id") == self._endpoint.model]
            return int(own[0]["max_model_len"])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError, AttributeError):
            return None

    async def _hedged(self, body: dict[str, Any]) -> list[Reply]:
        """The first good answer of one try, or of a second copy sent when the first is slow."""
        tries = {asyncio.create_task(self._try(body))}
        try:
            if self._endpoint.hedge_after_s > 0:
                done, _ = await asyncio.wait(tries, timeout=self._endpoint.hedge_after_s)
                if not done and self._budget.spend():
                    tries.add(asyncio.create_task(self._try(body)))
            pending = tries
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                good = [task for task in done if task.exception() is None]
                if good or not pending:
                    return (good or list(done))[0].result()
        finally:
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    async def _try(self, body: dict[str, Any]) -> list[Reply]:
        """The replies of one POST; raises `RequestFailed`."""
        self._budget.earn()
        session, slots = self._connect()
        try:
            async with (
                slots,
                asyncio.timeout(self._limit_s),
                session.post(self._url, json=body, headers=self._headers(), allow_redirects=False) as response,
            ):
                raw = await response.content.read(MAX_REPLY_BYTES)
                while len(raw) < MAX_REPLY_BYTES and not response.content.at_eof():
                    raw += await response.content.read(MAX_REPLY_BYTES - len(raw))
                if response.status != 200:
                    retry_after = response.headers.get("Retry-After", "")
                    raise refusal(response.status, raw, retry_after, self._path, self._key.reveal())
        except aiohttp.ConnectionTimeoutError:
            raise RequestFailed(f"no connection in {CONNECT_S:g} s", again=True) from None
        except TimeoutError:
            # Sent again at once it would only add to the load that made it late.
            limit = f"no answer in {self._limit_s:g} s (critic.endpoint.request_deadline_s)"
            raise RequestFailed(limit, again=False, kind=f"{LATE}: ") from None
        except aiohttp.ClientError as error:
            # Its text may quote headers; its kind is enough.
            raise RequestFailed(f"connection failed ({type(error).__name__})", again=True) from None
        return read_replies(raw)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key.reveal()}"} if self._key.reveal() else {}

    def _connect(self) -> tuple[aiohttp.ClientSession, asyncio.Semaphore]:
        if self._session is None or self._slots is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S))
            self._slots = asyncio.Semaphore(self._endpoint.max_in_flight)
        return self._session, self._slots

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        self._session = self._slots = None


class EndpointJudge(Panel):
    """`protocols.Judge`: a critic behind an API. Lives in one event loop; `close` when done."""

    def __init__(
        self, config: CriticConfig, *, vote: str, quorum: int, store: CritiqueStore | StoreDoor | None = None
    ) -> None:
        self._endpoint = EndpointSource(config, greedy=asks_once(vote))
        super().__init__(self._endpoint, config, vote=vote, quorum=quorum, store=store)

    def stats(self) -> dict[str, float]:
        """The panel's figures, retries and openings of the breaker."""
        return super().stats() | self._endpoint.counts

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()
