"""The endpoint critic against a server on the loopback: retries, hedges, breaker, and a key that never shows."""

import asyncio
import json
import pickle
import random
import select
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from capo_ray.config.critic import CriticConfig, EndpointConfig
from capo_ray.critics.endpoint import EndpointJudge
from capo_ray.protocols import JudgeRequest
from capo_ray.served.key import Secret, read_key
from capo_ray.served.retries import Breaker, RetryBudget, backoff_s, retry_after_s
from capo_ray.types import Critique, Problem

KEY = "sk-canary-0123456789"
FIRST = "Judgement: No\n<incorrect_steps>0</incorrect_steps>"
Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def answer(texts: list[str], finish: str = "stop") -> web.Response:
    choices = [{"message": {"content": t}, "finish_reason": finish} for t in texts]
    return web.json_response({"choices": choices, "usage": {"prompt_tokens": 50, "completion_tokens": 10 * len(texts)}})


class Server:
    """A chat API on the loopback that answers as told, and keeps what it was sent.

    For `silent_s` from the first connection on it is a black hole: connections are taken, nothing is read or answered.
    """

    def __init__(self, handler: Handler, *, silent_s: float = 0.0) -> None:
        self.handler, self._silent_s = handler, silent_s
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.models: list[dict[str, Any]] = []

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        return await self.handler(request, body)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"data": self.models})

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/completions", self._handle)
        app.router.add_get("/v1/models", self._list)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        self._socket = socket.create_server(("127.0.0.1", 0))
        site = web.SockSite(self.runner, self._socket)
        self._opening = asyncio.create_task(self._open(site))
        if not self._silent_s:
            await self._opening
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    async def _open(self, site: web.SockSite) -> None:
        while self._silent_s and not select.select([self._socket], [], [], 0)[0]:
            await asyncio.sleep(0.01)  # the silence begins with the first connection, however late it comes
        await asyncio.sleep(self._silent_s)
        await site.start()

    async def __aexit__(self, *_: object) -> None:
        self._opening.cancel()
        await self.runner.cleanup()
        self._socket.close()


def ask(
    server: Server,
    *,
    k: int = 4,
    early_stop: bool = False,
    deadline_s: float = 20.0,
    times: int = 1,
    max_tokens: int = 64,
    **knobs: Any,
) -> tuple[list[tuple[Critique, ...]], dict[str, float]]:
    async def go() -> tuple[list[tuple[Critique, ...]], dict[str, float]]:
        async with server as url:
            endpoint = EndpointConfig(base_url=url, model="judge", retry_wait_s=0.01, **knobs)
            config = CriticConfig(
                backend="endpoint",
                endpoint=endpoint,
                rubric="paper",
                early_stop=early_stop,
                deadline_s=deadline_s,
                max_tokens=max_tokens,
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
def test_a_refusal_is_not_retried_abstains_and_is_told_without_the_key(status: int, tmp_path: Path) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=status, text=f"bad key {request.headers.get('Authorization')}")

    path = tmp_path / "key"
    path.write_text(KEY)
    server = Server(handler)
    (votes,), _ = ask(server, key_file=str(path))
    assert len(server.bodies) == 1
    assert [v.flagged for v in votes] == [None] * 4
    assert votes[0].reason == f"refused: HTTP {status} at /v1/chat/completions: bad key Bearer ***"


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
    assert results[-1][0].reason == "failed: circuit open (the last error: HTTP 500)"
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
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_key(EndpointConfig(key_file="~/key")).reveal() == KEY
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
    assert votes[0].reason.startswith("refused: HTTP 307")


@pytest.mark.parametrize(
    "message",
    [
        # vLLM (older; OpenAI's form) and newer, SGLang
        "This model's maximum context length is 512 tokens. However, you requested 164 tokens (100 in the messages, 64 "
        "in the completion). Please reduce the length of the messages or completion.",
        "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is 512 tokens "
        "and your request has 100 input tokens (64 > 512 - 100).",
        "Requested token count exceeds the model's maximum context length of 512 tokens. You requested a total of "
        "164 tokens: 100 tokens from the input messages and 64 tokens for the completion.",
    ],
)
def test_a_request_too_long_for_the_server_is_sent_once_more_with_the_room_that_it_names(message: str) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["max_tokens"] > 412:
            return web.json_response({"object": "error", "message": message}, status=400)
        return answer([FIRST] * body["n"])

    server = Server(handler)
    (votes,), _ = ask(server, max_tokens=2048)
    assert all(v.valid for v in votes)
    assert [body["max_tokens"] for body in server.bodies] == [2048, 412]


def test_a_server_that_names_no_room_at_all_is_asked_for_its_context() -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["max_tokens"] > 4000:
            return web.json_response({"error": {"message": "request exceeds the context size"}}, status=400)
        return answer([FIRST] * body["n"])

    server = Server(handler)
    server.models = [{"id": "other", "max_model_len": 9}, {"id": "judge", "max_model_len": 4096}]
    (votes,), _ = ask(server, max_tokens=8192)
    assert all(v.valid for v in votes)
    assert 2000 < server.bodies[1]["max_tokens"] < 4096


def test_without_room_for_an_answer_the_vote_abstains_in_the_servers_words() -> None:
    said = "This model's maximum context length is 128 tokens. However, your prompt contains 100 input tokens"

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": said}}, status=400)

    server = Server(handler)
    (votes,), _ = ask(server, max_tokens=2048)
    assert [v.flagged for v in votes] == [None] * 4 and len(server.bodies) == 1
    assert votes[0].reason == f"refused: HTTP 400 at /v1/chat/completions: {said}"


def test_a_late_request_is_not_sent_again_to_the_same_server() -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(5)
        return answer([FIRST])

    server = Server(handler)
    (votes,), _ = ask(server, request_deadline_s=0.3)
    assert len(server.bodies) == 1
    assert votes[0].reason == "deadline: no answer in 0.3 s (critic.endpoint.request_deadline_s)"


def test_the_time_for_a_request_follows_from_the_length_of_its_answer() -> None:
    assert EndpointConfig().request_limit_s(2048) == pytest.approx(234.8)
    assert EndpointConfig(request_deadline_s=7).request_limit_s(2048) == 7


def test_retry_after_is_read_as_seconds_or_date_and_heeded_within_bounds() -> None:
    assert retry_after_s("1.5") == 1.5
    assert retry_after_s("Thu, 01 Jan 1970 00:02:00 GMT", now=30.0) == 90.0
    assert retry_after_s("soon") is None and retry_after_s("nan") is None
    assert backoff_s(0, 0.1, 120.0, random.Random(0)) == 120.0
    assert backoff_s(0, 0.1, 3600.0, random.Random(0)) == 300.0
    now = 0.0
    breaker = Breaker(1, 10, lambda: now)
    breaker.failed(asked_s=60.0)
    now = 59.0
    assert not breaker.allows()
    now = 61.0
    assert breaker.allows()


def test_reasoning_models_are_asked_in_their_own_parameters() -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return answer([FIRST] * body["n"])

    server = Server(handler)
    ask(server, parameters="reasoning")
    assert server.bodies[0]["max_completion_tokens"] == 64
    assert not {"max_tokens", "temperature", "top_p"} & set(server.bodies[0])


@pytest.mark.parametrize(
    "usage", [None, {"prompt_tokens": "many", "completion_tokens": None}, [], {"prompt_tokens": -1}]
)
def test_an_answer_counts_whatever_its_usage_says(usage: object) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        choice = {"message": {"content": FIRST}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice] * body["n"], "usage": usage})

    (votes,), _ = ask(Server(handler))
    assert all(v.valid for v in votes)


@pytest.mark.parametrize("content", [None, ""])
def test_an_answer_cut_off_while_thinking_says_so(content: str | None) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        choice = {"message": {"content": content, "reasoning_content": "Let me see"}, "finish_reason": "length"}
        return web.json_response({"choices": [choice] * body["n"]})

    (votes,), _ = ask(Server(handler))
    assert {v.reason for v in votes} == {"cut off at max_tokens before its list of wrong steps"}


def test_a_blank_behind_the_address_is_no_part_of_it() -> None:
    config = CriticConfig(
        backend="endpoint", endpoint=EndpointConfig(base_url="http://h/v1/ ", model="m"), rubric="paper"
    )
    assert EndpointJudge(config, vote="majority", quorum=1)._endpoint._posts._url == "http://h/v1/chat/completions"
