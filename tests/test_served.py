"""A policy behind a server of completions: what is sent, what is read, and what a refusal says."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web

from capo_ray.config.api import ApiConfig
from capo_ray.engines import HfTokenizer, ServedEngine
from capo_ray.problems import asset_path
from capo_ray.protocols import PartLost, PartTimeout, RunFailed, Sampling
from capo_ray.types import Completion
from tests.test_critics_endpoint import Server

TEXT = "1+2=3"


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    return HfTokenizer(asset_path("laptop", "policy"))


def ask(server: Server, tokenizer: HfTokenizer, sampling: Sampling, deadline_s: float = 20.0) -> Sequence[Completion]:
    async def go() -> Sequence[Completion]:
        async with server as url:
            engine = ServedEngine(
                ApiConfig(base_url=url, model="policy", max_retries=0), tokenizer, max_tokens=16, deadline_s=deadline_s
            )
            try:
                return await engine.generate([5, 6, 7], sampling)
            finally:
                await engine.close()

    return asyncio.run(go())


def serve(choices: list[dict[str, Any]]) -> Server:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"choices": choices})

    return Server(handler)


def test_the_prompt_goes_as_ids_and_only_what_is_set_goes_beside_it(tokenizer: HfTokenizer) -> None:
    server = serve([{"text": TEXT, "finish_reason": "stop"}])
    ask(server, tokenizer, Sampling(temperature=0.5, top_p=0.9, max_tokens=16, seed=3))
    (body,) = server.bodies
    assert body == {
        "model": "policy",
        "prompt": [5, 6, 7],
        "max_tokens": 16,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 1,
        "seed": 3,
        "return_token_ids": True,
    }
    ask(server, tokenizer, Sampling(stop_token_ids=(9,), stop_strings=("\n\n",)))
    assert server.bodies[1].items() >= {"stop_token_ids": [9], "stop": ["\n\n"]}.items()
    assert server.bodies[1]["include_stop_str_in_output"] is True and "seed" not in server.bodies[1]


def test_told_ids_are_the_responses_and_a_text_alone_is_encoded(tokenizer: HfTokenizer) -> None:
    ids = [*tokenizer.encode(TEXT), tokenizer.eos_id]
    told = {"index": 1, "text": "not looked at", "token_ids": ids, "finish_reason": "stop"}
    alone = {"index": 0, "text": TEXT, "finish_reason": "length"}
    first, second = ask(serve([told, alone]), tokenizer, Sampling(n=2))  # by index, whatever their order
    assert list(second.token_ids) == ids and second.text == TEXT and second.finish == "stop"
    assert list(first.token_ids) == ids[:-1] and first.text == TEXT and first.finish == "length"
    assert second.char_ends[-1] == len(TEXT) and all(map(math.isnan, second.logprobs))
    assert second.versions[-1].end == len(ids)


@pytest.mark.parametrize("choice", [{}, {"text": "1", "token_ids": [-1]}, {"text": "1", "token_ids": ["x"]}])
def test_an_answer_out_of_form_is_a_lost_request(tokenizer: HfTokenizer, choice: dict[str, Any]) -> None:
    with pytest.raises(PartLost, match="answer not in the API's form"):
        ask(serve([choice]), tokenizer, Sampling())


def test_fewer_responses_than_asked_for_are_a_lost_request(tokenizer: HfTokenizer) -> None:
    with pytest.raises(PartLost, match="gave 1 responses for n=2"):
        ask(serve([{"text": TEXT}]), tokenizer, Sampling(n=2))


def test_a_silent_server_is_left_at_the_deadline(tokenizer: HfTokenizer) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    with pytest.raises(PartTimeout, match="did not answer within 0"):
        ask(Server(handler), tokenizer, Sampling(), deadline_s=0.2)


def test_the_start_says_what_the_server_said(tokenizer: HfTokenizer) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no such model"}}, status=404)

    async def go() -> None:
        async with Server(handler) as url:
            engine = ServedEngine(ApiConfig(base_url=url, model="other"), tokenizer, max_tokens=16, deadline_s=20)
            try:
                await engine.start()
            finally:
                await engine.close()

    with pytest.raises(RunFailed, match="as other, got: the served policy: HTTP 404 at /v1/completions: no such model"):
        asyncio.run(go())


def test_an_address_or_a_name_that_cannot_be_right_is_refused(tokenizer: HfTokenizer) -> None:
    for api, said in (
        (ApiConfig(base_url="h/v1", model="m"), "endpoint.base_url must be http"),
        (ApiConfig(base_url="http://h/v1"), "endpoint.model must be the model's name"),
    ):
        with pytest.raises(ValueError, match=said):
            ServedEngine(api, tokenizer, max_tokens=16, deadline_s=20)
