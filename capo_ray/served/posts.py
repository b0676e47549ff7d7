"""POSTs to one address of an API: retries in a budget, hedges, a breaker, and a bound on what is read.

Invariants
- What the server says of a failure stands in `RequestFailed`, shortened, the key blotted out.
- The key comes from a file or the environment at the time of use; it is in no config, repr, error or pickle, and
   goes to no address but the configured one (redirects are not followed).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import aiohttp

from capo_ray.config.api import ApiConfig
from capo_ray.served.key import read_key
from capo_ray.served.refusals import RequestFailed, refusal
from capo_ray.served.retries import Breaker, RetryBudget, backoff_s

CONNECT_S = 10.0
MAX_REPLY_BYTES = 8 << 20
Body = dict[str, Any]
T = TypeVar("T")


class Posts(Generic[T]):
    """What is asked at `base_url` + `path`; `read` makes of an answer's bytes what `ask` returns.

    Lives in one event loop; `close` when done. Raises ValueError where the address, the model's name or the key cannot
    be right.
    """

    def __init__(self, api: ApiConfig, path: str, limit_s: float, read: Callable[[bytes], T]) -> None:
        base_url = api.base_url.strip().rstrip("/")
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(
                f"{api.section}.base_url must be http(s)://host[:port]/path, without user or query"
                + (f" (got no http:// or https:// before {base_url})" if base_url and "//" not in base_url else "")
            )
        if not api.model:
            raise ValueError(f"{api.section}.model must be the model's name at {api.section}.base_url (got none)")
        self._api, self._key, self._limit_s, self._read = api, read_key(api), limit_s, read
        self._url, self._models_url = base_url + path, base_url + "/models"
        self._path = parts.path + path
        self._last_error = ""
        self.budget, self._rng = RetryBudget(), random.Random()
        self.breaker = Breaker(api.breaker_failures, api.breaker_open_s)
        self._session: aiohttp.ClientSession | None = None
        self._slots: asyncio.Semaphore | None = None
        self.model = f"{parts.hostname}/{api.model}"

    async def ask(self, body: Body, mend: Callable[[RequestFailed], Awaitable[Body | None]] | None = None) -> T:
        """What `read` makes of the answer; raises `RequestFailed` once tries, budget or breaker are at their end.

        `mend` makes of a failure another body to send at once, or None.
        """
        failure = RequestFailed(f"circuit open (the last error: {self._last_error})", again=False)
        attempt = 0
        while self.breaker.allows():
            try:
                answer = await self._hedged(body)
            except RequestFailed as error:
                failure = error
                self._judge(error)
                if mend is not None and (mended := await mend(error)) is not None:
                    body = mended
                    continue
                last = attempt == self._api.max_retries
                if not error.again or last or not self.budget.spend():
                    break
                await asyncio.sleep(backoff_s(attempt, self._api.retry_wait_s, error.wait_s, self._rng))
                attempt += 1
            except asyncio.CancelledError:
                self.breaker.abandoned()
                raise
            else:
                self.breaker.succeeded()
                return answer
        raise failure

    def _judge(self, error: RequestFailed) -> None:
        """A server that refuses is up; anything else counts towards the breaker."""
        if error.kind == "refused":
            self.breaker.succeeded()
        else:
            self._last_error = str(error)
            self.breaker.failed(error.wait_s or 0.0)

    async def context(self) -> int | None:
        """The model's context in tokens as the server lists it; None where it does not."""
        session, _ = self._connect()
        try:
            async with (
                asyncio.timeout(CONNECT_S),
                session.get(self._models_url, headers=self._headers(), allow_redirects=False) as response,
            ):
                models = json.loads(await response.content.read(MAX_REPLY_BYTES))["data"]
            own = [m for m in models if m.get("id") == self._api.model]
            return int(own[0]["max_model_len"])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError, AttributeError):
            return None

    async def _hedged(self, body: Body) -> T:
        """The first good answer of one try, or of a second copy sent when the first is slow."""
        tries = {asyncio.create_task(self._try(body))}
        try:
            if self._api.hedge_after_s > 0:
                done, _ = await asyncio.wait(tries, timeout=self._api.hedge_after_s)
                if not done and self.budget.spend():
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

    async def _try(self, body: Body) -> T:
        """The answer to one POST; raises `RequestFailed`."""
        self.budget.earn()
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
            limit = f"no answer in {self._limit_s:g} s ({self._api.section}.request_deadline_s)"
            raise RequestFailed(limit, again=False, kind="late") from None
        except aiohttp.ClientError as error:
            # Its text may quote headers; its kind is enough.
            raise RequestFailed(f"connection failed ({type(error).__name__})", again=True) from None
        try:
            return self._read(raw)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise RequestFailed(f"answer not in the API's form ({type(error).__name__})", again=True) from None

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key.reveal()}"} if self._key.reveal() else {}

    def _connect(self) -> tuple[aiohttp.ClientSession, asyncio.Semaphore]:
        if self._session is None or self._slots is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S))
            self._slots = asyncio.Semaphore(self._api.max_in_flight)
        return self._session, self._slots

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        self._session = self._slots = None
