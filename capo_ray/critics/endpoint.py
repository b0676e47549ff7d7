"""A critic behind any OpenAI-compatible chat API.

    prompt text (escaped, fenced) -> POST {base_url}/chat/completions, n votes -> replies
                                     retries in a budget, hedges, breaker; the group's deadline above all

Invariant: the key comes from a file or the environment at the time of use; it is in no config, repr, error or pickle,
and goes to no address but the configured one (redirects are not followed).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import aiohttp

from capo_ray.config.sections import CriticConfig, EndpointConfig
from capo_ray.critics.grammar import verdict_regex
from capo_ray.critics.panel import Asking, Panel, Reply
from capo_ray.critics.retries import Breaker, RetryBudget, backoff_s
from capo_ray.critics.store import CritiqueStore
from capo_ray.prompts import build_critic_text, load_rubric

MAX_REPLY_BYTES = 8 << 20
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class Secret:
    """A text that does not show itself."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not sent anywhere: read it where it is used")


class RequestFailed(RuntimeError):
    """A try that brought no answer; `again` says whether another may, `wait_s` what the server asked for."""

    def __init__(self, reason: str, *, again: bool, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.again, self.wait_s = again, wait_s


def read_key(config: EndpointConfig) -> Secret:
    """The API key from its file or environment variable; empty where neither is named. Raises `ValueError`."""
    if config.key_file:
        path = Path(config.key_file)
        if not path.is_file():
            raise ValueError(f"critic.endpoint.key_file must be a file that holds the key (got {path})")
        key = path.read_text(encoding="utf-8").strip()
    elif config.key_env:
        key = os.environ.get(config.key_env, "").strip()
    else:
        return Secret("")
    if not key or not key.isascii() or not key.isprintable():
        source = config.key_file or f"${config.key_env}"
        raise ValueError(
            f"critic.endpoint: expected a printable key in {source}, got {'something else' if key else 'nothing'}"
        )
    return Secret(key)


class EndpointSource:
    """Votes from an API."""

    def __init__(self, config: CriticConfig, *, greedy: bool) -> None:
        endpoint = config.endpoint
        parts = urlsplit(endpoint.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("critic.endpoint.base_url must be http(s)://host[:port]/path, without user or query")
        if not endpoint.model:
            raise ValueError("critic.backend=endpoint needs critic.endpoint.model, the model's name there (got none)")
        self._config, self._endpoint = config, endpoint
        self._key = read_key(endpoint)
        self._url = endpoint.base_url.rstrip("/") + "/chat/completions"
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
        size = self._endpoint.votes_per_request or num_votes
        pending = {self._send(body, min(size, num_votes - at)) for at in range(0, num_votes, size)}
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
                    pending = {self._send(body, 1) for _ in range(missing)}
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _send(self, body: dict[str, Any], n: int) -> asyncio.Task[list[Reply]]:
        return asyncio.create_task(self._request({**body, "n": n} if n > 1 else body))

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
            "temperature": self._temperature,
            "top_p": self.sampling["top_p"],
            "max_tokens": self._config.max_tokens,
        }
        if self._config.constrain:
            body["structured_outputs"] = {"regex": verdict_regex(len(asking.steps), self._rubric.name)}
        return body

    async def _request(self, body: dict[str, Any]) -> list[Reply]:
        """The replies of one request, with retries; one failed reply per vote when all is in vain."""
        reason = "circuit open"
        for attempt in range(self._endpoint.max_retries + 1):
            if not self._breaker.allows():
                break
            try:
                replies = await self._hedged(body)
            except RequestFailed as error:
                self._breaker.failed()
                reason = str(error)
                if not error.again or attempt == self._endpoint.max_retries or not self._budget.spend():
                    break
                await asyncio.sleep(backoff_s(attempt, self._endpoint.retry_wait_s, error.wait_s, self._rng))
            except asyncio.CancelledError:
                self._breaker.abandoned()
                raise
            else:
                self._breaker.succeeded()
                return replies
        return [Reply("", failure=reason)] * int(body.get("n", 1))

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
        headers = {"Authorization": f"Bearer {self._key.reveal()}"} if self._key.reveal() else {}
        try:
            async with (
                slots,
                asyncio.timeout(self._endpoint.request_deadline_s),
                session.post(self._url, json=body, headers=headers, allow_redirects=False) as response,
            ):
                raw = await response.content.read(MAX_REPLY_BYTES)
                while len(raw) < MAX_REPLY_BYTES and not response.content.at_eof():
                    raw += await response.content.read(MAX_REPLY_BYTES - len(raw))
                if response.status != 200:
                    wait_s = _seconds(response.headers.get("Retry-After", ""))
                    raise RequestFailed(f"HTTP {response.status}", again=response.status in RETRIED, wait_s=wait_s)
        except TimeoutError:
            limit = self._endpoint.request_deadline_s
            raise RequestFailed(f"no answer in {limit:g} s (critic.endpoint.request_deadline_s)", again=True) from None
        except aiohttp.ClientError as error:
            # Its text may quote headers; its kind is enough.
            raise RequestFailed(f"connection failed ({type(error).__name__})", again=True) from None
        return _read_replies(raw)

    def _connect(self) -> tuple[aiohttp.ClientSession, asyncio.Semaphore]:
        if self._session is None or self._slots is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
            self._slots = asyncio.Semaphore(self._endpoint.max_in_flight)
        return self._session, self._slots

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        self._session = self._slots = None


class EndpointJudge(Panel):
    """`protocols.Judge`: a critic behind an API. Lives in one event loop; `close` when done."""

    def __init__(self, config: CriticConfig, *, vote: str, quorum: int, store: CritiqueStore | None = None) -> None:
        self._endpoint = EndpointSource(config, greedy=vote == "greedy")
        super().__init__(self._endpoint, config, vote=vote, quorum=quorum, store=store)

    def stats(self) -> dict[str, float]:
        """The panel's figures, retries and openings of the breaker."""
        return super().stats() | self._endpoint.counts

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()


def _read_replies(raw: bytes) -> list[Reply]:
    """The choices of an answer; raises `RequestFailed` on one that is not in the API's form."""
    try:
        answer = json.loads(raw)
        choices = answer["choices"]
        usage = answer.get("usage") or {}
        prompt_tokens = int(usage.get("prompt_tokens") or 0)
        output_tokens = int(usage.get("completion_tokens") or 0) // max(1, len(choices))
        return [
            Reply(
                text=str(choice["message"].get("content") or ""),
                truncated=choice.get("finish_reason") == "length",
                output_tokens=output_tokens,
                prompt_tokens=prompt_tokens,
            )
            for choice in choices
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RequestFailed(f"answer not in the API's form ({type(error).__name__})", again=True) from None


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
