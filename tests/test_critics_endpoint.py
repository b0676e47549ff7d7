"""The endpoint critic against a server on the loopback: retries, hedges, breaker, and a key that never shows."""

import asyncio
import json
import pickle
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from capo_ray.config.sections import CriticConfig, EndpointConfig
from capo_ray.critics.endpoint import EndpointJudge, Secret, read_key
from capo_ray.critics.retries import Breaker, RetryBudget
from capo_ray.protocols import JudgeRequest
from capo_ray.types import Critique, Problem

KEY = "sk-canary-0123456789"
FIRST = "Judgement: No\n<incorrect_steps>0</incorrect_steps>"
Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def answer(texts: list[str], finish: str = "stop") -> web.Response:
    choices = [{"message": {"content": t}, "finish_reason": finish} for t in texts]
    return web.json_response({"choices": choices, "usage": {"prompt_tokens": 50, "completion_tokens": 10 * len(texts)}})


class Server:
    """A chat API on the loopback that answers as told, and keeps what it was sent."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        return await self.handler(request, body)

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        return f"http://127.0.0.1:{port}/v1"

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()


def ask(
    server: Server, *, k: int = 4, early_stop: bool = False, deadline_s: float = 20.0, times: int = 1, **knobs: Any
) -> tuple[list[tuple[Critique, ...]], dict[str, float]]:
    async def go() -> tuple[list[tuple[Critique, ...]], dict[str, float]]:
        async with server as url:
            endpoint = EndpointConfig(base_url=url, model="judge", retry_wait_s=0.01, **knobs)
            config = CriticConfig(
                backend="endpoint", endpoint=endpoint, rubric="paper", early_stop=early_stop, deadline_s=deadline_s
            )
            judge = EndpointJudge(config, vote="majority", quorum=1)
            try:
                results = []
                for _ in range(times):
                    request = JudgeRequest(("3+4=8", "8*2=16"))
                    results.append((await judge.critique(Problem("p", "3+4*2", "14"), [request], k))[0])
                return results, judge.stats()
            finally:
                await judge.close()

    return asyncio.run(go())


def test_all_votes_of_a_response_come_with_one_request() -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return answer([FIRST] * body["n"])

    server = Server(handler)
    (votes,), stats = ask(server)
    assert [v.flagged for v in votes] == [frozenset({0})] * 4
    assert len(server.bodies) == 1
    assert stats["critic/prompt_tokens_total"] == 50
    assert "<step_1>8*2=16</step_1>" in server.bodies[0]["messages"][0]["content"]


def test_a_server_that_ignores_n_is_asked_for_the_rest() -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return answer([FIRST])

    server = Server(handler)
    (votes,), _ = ask(server)
    assert sum(v.valid for v in votes) == 4
    assert len(server.bodies) == 4


def test_a_passing_failure_is_retried() -> None:
    calls = 0

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        return web.Response(status=503) if calls < 3 else answer([FIRST] * body["n"])

    (votes,), stats = ask(Server(handler))
    assert all(v.valid for v in votes)
    assert stats["critic/retries_total"] == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_not_retried_and_abstains(status: int) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=status, text=f"bad key {request.headers.get('Authorization')}")

    server = Server(handler)
    (votes,), _ = ask(server)
    assert len(server.bodies) == 1
    assert [v.flagged for v in votes] == [None] * 4
    assert votes[0].reason == f"failed: HTTP {status}"


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"choices": [{}]}', b'{"choices": 5}', b"\xff\xfe", b"[" * 5000])
def test_an_answer_out_of_form_abstains(raw: bytes) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=raw)

    (votes,), _ = ask(Server(handler), max_retries=0)
    assert [v.flagged for v in votes] == [None] * 4


def test_a_silent_server_costs_no_more_than_the_deadline() -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(5)
        return answer([FIRST])

    started = time.monotonic()
    (votes,), _ = ask(Server(handler), deadline_s=0.3)
    assert [v.reason for v in votes] == ["deadline"] * 4
    assert time.monotonic() - started < 4


def test_a_hedge_overtakes_a_slow_request() -> None:
    calls = 0

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.sleep(3)
        return answer([FIRST] * body["n"])

    server = Server(handler)
    (votes,), stats = ask(server, hedge_after_s=0.05)
    assert all(v.valid for v in votes)
    assert max(v.provenance.seconds for v in votes) < 2
    assert stats["critic/retries_total"] == 1


def test_one_vote_per_request_stops_early() -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return answer([FIRST])

    (votes,), _ = ask(Server(handler), early_stop=True, votes_per_request=1)
    assert len(votes) < 4


def test_the_breaker_stops_asking_a_server_that_is_down() -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=500)

    server = Server(handler)
    results, stats = ask(server, times=6, max_retries=0, breaker_failures=2, breaker_open_s=60)
    assert len(server.bodies) == 2
    assert results[-1][0].reason == "failed: circuit open"
    assert stats["critic/breaker_opened_total"] == 1


def test_the_breaker_lets_one_probe_through_and_closes_on_success() -> None:
    now = 0.0
    breaker = Breaker(2, 10, lambda: now)
    breaker.failed()
    breaker.failed()
    assert not breaker.allows()
    now = 11.0
    assert breaker.allows()
    assert not breaker.allows()
    breaker.succeeded()
    assert breaker.allows()


def test_the_retry_budget_ends_and_earns_back() -> None:
    budget = RetryBudget()
    assert sum(budget.spend() for _ in range(100)) == 10
    for _ in range(5):
        budget.earn()
    assert budget.spend()
    assert not budget.spend()


def test_the_key_is_sent_and_shows_nowhere_else(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return answer([FIRST] * body["n"])

    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    server = Server(handler)
    (votes,), stats = ask(server, key_file=str(path))
    assert server.keys == [f"Bearer {KEY}"]
    config = EndpointConfig(base_url="https://h/v1", model="m", key_file=str(path))
    secret = read_key(config)
    shown = [
        repr(votes),
        repr(stats),
        repr(secret),
        str(secret),
        repr(config),
        config.model_dump_json(),
        json.dumps(server.bodies),
    ]
    assert not any(KEY in text for text in shown)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    assert read_key(EndpointConfig(key_env="JUDGE_KEY")).reveal() == KEY
    with pytest.raises(ValueError, match="JUDGE_NONE"):
        read_key(EndpointConfig(key_env="JUDGE_NONE"))
    assert repr(Secret("")) == "Secret()"


@pytest.mark.parametrize("url", ["", "ftp://h/v1", "https://user:pass@h/v1", "h/v1", "https://h/v1?key=x"])
def test_an_address_that_cannot_be_right_is_refused(url: str) -> None:
    config = CriticConfig(backend="endpoint", endpoint=EndpointConfig(base_url=url, model="m"), rubric="paper")
    with pytest.raises(ValueError, match="base_url"):
        EndpointJudge(config, vote="majority", quorum=1)


def test_redirects_do_not_carry_the_key_away(tmp_path) -> None:  # type: ignore[no-untyped-def]
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("/v1/chat/completions")

    path = tmp_path / "key"
    path.write_text(KEY)
    server = Server(handler)
    (votes,), _ = ask(server, key_file=str(path))
    assert len(server.keys) == 1
    assert votes[0].reason == "failed: HTTP 307"
