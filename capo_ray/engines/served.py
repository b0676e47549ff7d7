"""A policy that somebody else serves, for evaluations: token ids to `/completions` of an OpenAI-compatible server.

    prompt ids -> served.Posts {"prompt": [ids], "n", "seed", …} -> choices -> `Completion`s

The prompt is what our own engines would get, id by id, so that an evaluation asks the same of either; the ids of an
answer are the server's where it tells them (vLLM's `return_token_ids`), and its text's otherwise. There are no logprobs
(NaN), and nothing can be scored or published: a served policy is not trained.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from capo_ray.config.api import ApiConfig
from capo_ray.engines.tokenizer import HfTokenizer
from capo_ray.protocols import PartLost, PartTimeout, RunFailed, Sampling
from capo_ray.response import Completion, Finish, VersionRun
from capo_ray.served import Posts, RequestFailed

_FINISH: dict[str, Finish] = {"stop": "stop", "length": "length"}


class ServedEngine:
    """`TextEngine` without scores; lives in one event loop, `close` when done."""

    def __init__(self, api: ApiConfig, tokenizer: HfTokenizer, *, max_tokens: int, deadline_s: float) -> None:
        self._api, self._tokenizer, self._deadline_s = api, tokenizer, deadline_s
        self._posts = Posts(api, "/completions", api.request_limit_s(max_tokens), self._read)

    async def start(self) -> None:
        """Returns once the server has answered; raises `RunFailed` with its words where it does not."""
        try:
            await self.generate(self._tokenizer.encode_data("1"), Sampling(max_tokens=1))
        except (PartLost, PartTimeout) as error:
            raise RunFailed(
                f"expected a server that completes token ids at {self._api.section}.base_url={self._api.base_url} as "
                f"{self._api.model}, got: {error}"
            ) from error

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`; raises `PartLost` with the server's words, or `PartTimeout`."""
        try:
            async with asyncio.timeout(self._deadline_s):
                completions = await self._posts.ask(self._body(prompt_ids, sampling))
        except TimeoutError:
            raise PartTimeout(f"the served policy did not answer within {self._deadline_s:g} s") from None
        except RequestFailed as error:
            raise PartLost(f"the served policy: {error}") from None
        if len(completions) < sampling.n:
            raise PartLost(f"the served policy gave {len(completions)} responses for n={sampling.n}")
        return tuple(completions[: sampling.n])

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """Never: raises `RunFailed`."""
        raise RunFailed(f"a policy at {self._api.section}.base_url cannot be scored; give model.path alone")

    async def close(self) -> None:
        """Close the connections."""
        await self._posts.close()

    def _body(self, prompt_ids: Sequence[int], sampling: Sampling) -> dict[str, Any]:
        """The request; what only some servers know is sent where it is needed alone."""
        body: dict[str, Any] = {
            "model": self._api.model,
            "prompt": [int(i) for i in prompt_ids],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": sampling.n,
            "return_token_ids": True,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop_token_ids:
            body["stop_token_ids"] = list(sampling.stop_token_ids)
        if sampling.stop_strings:
            body |= {"stop": list(sampling.stop_strings), "include_stop_str_in_output": True}
        return body

    def _read(self, raw: bytes) -> list[Completion]:
        """The choices in order; raises what comes of an answer that is not in the API's form."""
        choices = sorted(json.loads(raw)["choices"], key=lambda choice: int(choice.get("index", 0)))
        return [self._completion(choice) for choice in choices]

    def _completion(self, choice: dict[str, Any]) -> Completion:
        told = choice.get("token_ids")
        ids = [int(i) for i in told] if isinstance(told, list) else self._tokenizer.encode_data(str(choice["text"]))
        if any(not 0 <= i < 2**31 for i in ids):
            raise ValueError("a token id out of range")
        text, ends = self._tokenizer.decode_pieces(ids)
        runs = (VersionRun(0, len(ids)),) if ids else ()
        finish = _FINISH.get(str(choice.get("finish_reason")), "aborted")
        return Completion(np.array(ids), np.full(len(ids), np.nan), np.array(ends), text, runs, finish)
