"""A `TextEngine` in this process, over a model on bare tensors: what is asked at one time is computed together.

    generate, stream --wait--> (the loop is quiet: nobody else will ask before there are answers) --sample--> answers

Weights change between two such moments only, so every response is of one version.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capo_ray.engines import HfTokenizer
from capo_ray.protocols import Sampling, WeightsHandle
from capo_ray.types import Completion, VersionRun
from plain_torch.model import Model
from plain_torch.sampling import Asked, Sampled, sample, score

QUIET_TURNS = 8
"""Turns of the event loop without a new request after which all that can come has come."""
MAX_STREAMS = 1024
"""Sampled at once; more would not be faster."""


@dataclass(frozen=True)
class _Request:
    prompt: tuple[int, ...]
    sampling: Sampling
    future: asyncio.Future[tuple[Completion, ...]]


def _alike(sampling: Sampling) -> tuple[float, float, tuple[int, ...]]:
    """What requests must share to be drawn together."""
    return sampling.temperature, sampling.top_p, sampling.stop_token_ids


class PlainEngine:
    """The model of a directory; `num_tokens` counts what it computed, a prompt once for all its continuations."""

    def __init__(self, path: str | Path, seed: int = 0) -> None:
        self.model, self.tokenizer = Model(path), HfTokenizer(str(path))
        self.version = self.num_tokens = 0
        self.after_load: Callable[[int], Awaitable[None]] | None = None
        self._next_seed = seed << 32  # of requests that bring none
        self._waiting: list[_Request] = []
        self._serving: asyncio.Task[None] | None = None
        self._pieces: dict[tuple[int, ...], tuple[str, tuple[int, ...]]] = {}
        self._read: set[tuple[int, ...]] = set()

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`; responses end at the model's end-of-sequence and at `stop_token_ids`."""
        if sampling.stop_strings:
            raise ValueError("the plain engine ends responses at tokens alone (got stop strings)")
        request = _Request(tuple(prompt_ids), sampling, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        return await request.future

    async def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        """As `StreamingEngine.stream`; all come at once."""
        for completion in await self.generate(prompt_ids, sampling):
            yield completion

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """As `TextEngine.score`."""
        found, num_read = score(self.model, token_ids, starts)
        self.num_tokens += num_read
        return tuple(found)

    async def load_weights(self, handle: WeightsHandle) -> int:
        """The version now held; the payload is the weights by their names."""
        assert isinstance(handle.payload, dict)
        self.model.load(handle.payload)
        self.version = handle.version
        self._pieces.clear()
        self._read.clear()
        if self.after_load is not None:
            await self.after_load(self.version)
        return self.version

    async def _serve(self) -> None:
        """Answer everybody, and those who ask as soon as they have answers."""
        while self._waiting:
            seen, quiet = len(self._waiting), 0
            while quiet < QUIET_TURNS:
                await asyncio.sleep(0)
                quiet = quiet + 1 if len(self._waiting) == seen else 0
                seen = len(self._waiting)
            requests, self._waiting = self._waiting, []
            try:
                self._answer([request for request in requests if not request.future.done()])
            except Exception as error:  # noqa: BLE001 whoever asked gets it
                for request in requests:
                    if not request.future.done():
                        request.future.set_exception(error)

    def _answer(self, requests: Sequence[_Request]) -> None:
        """Sample for the requests, those that draw alike together, the longest prompts first."""
        for request in requests:
            if request.prompt not in self._read:
                self._read.add(request.prompt)
                self.num_tokens += len(request.prompt)
        ordered = sorted(requests, key=lambda r: (*_alike(r.sampling), -len(r.prompt)))
        while ordered:
            first, count, streams = ordered[0].sampling, 0, 0
            for request in ordered:
                asks = request.sampling
                streams += asks.n
                if _alike(asks) != _alike(first) or (count and streams > MAX_STREAMS):
                    break
                count += 1
            part, ordered = ordered[:count], ordered[count:]
            asked = [Asked(r.prompt, r.sampling.n, r.sampling.max_tokens, self._seed_of(r)) for r in part]
            for request, row in zip(part, sample(self.model, asked, *_alike(first)), strict=True):
                self.num_tokens += sum(len(stream.ids) for stream in row)
                request.future.set_result(tuple(self._completion(s, request.sampling.entropies) for s in row))

    def _seed_of(self, request: _Request) -> int:
        if request.sampling.seed is not None:
            return request.sampling.seed
        self._next_seed += request.sampling.n
        return self._next_seed

    def _completion(self, stream: Sampled, with_entropies: bool) -> Completion:
        if stream.ids not in self._pieces:
            self._pieces[stream.ids] = self.tokenizer.decode_pieces(stream.ids)
        text, char_ends = self._pieces[stream.ids]
        return Completion(
            token_ids=np.array(stream.ids),
            logprobs=np.array(stream.logprobs),
            char_ends=np.array(char_ends),
            text=text,
            versions=(VersionRun(self.version, len(stream.ids)),),
            finish="stop" if stream.finished else "length",
            entropies=np.array(stream.entropies if with_entropies else ()),
        )
