"""A critic behind any OpenAI-compatible chat API.

prompt text (escaped, fenced) -> `served.Posts`, n votes -> replies          the group's deadline above all
                                 too long for the server's context -> once more with the room that it names
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from capo_ray.config.credit import asks_once
from capo_ray.config.sections import CriticConfig
from capo_ray.critics.grammar import verdict_regex
from capo_ray.critics.guarded import StoreDoor
from capo_ray.critics.panel import FAILED, LATE, REFUSED, Asking, Panel, Reply
from capo_ray.critics.room import has_context_words, least_answer_tokens, room_from
from capo_ray.critics.store import CritiqueStore
from capo_ray.prompts import build_critic_text, load_rubric
from capo_ray.served import Posts, RequestFailed

KINDS = {"failed": FAILED, "refused": REFUSED, "late": f"{LATE}: "}
"""What becomes of a vote whose request failed so."""


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
        self._config, self._endpoint = config, config.endpoint
        limit_s = config.endpoint.request_limit_s(config.max_tokens)
        self._posts = Posts(config.endpoint, "/chat/completions", limit_s, read_replies)
        self._rubric = load_rubric(config.rubric)
        self._temperature = 0.0 if greedy else config.temperature
        self.model = self._posts.model
        self.sampling: dict[str, object] = {
            "temperature": self._temperature,
            "top_p": 1.0 if greedy else config.top_p,
            "max_tokens": config.max_tokens,
            "constrain": config.constrain,
        }
        if self._endpoint.parameters != "plain":
            self.sampling["parameters"] = self._endpoint.parameters

    @property
    def counts(self) -> dict[str, float]:
        """Retries (hedges included) and openings of the breaker."""
        return {
            "critic/retries_total": float(self._posts.budget.spent),
            "critic/breaker_opened_total": float(self._posts.breaker.times_opened),
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
        try:
            return await self._posts.ask(post.body, lambda error: self._shorter(post, error))
        except RequestFailed as error:
            return [Reply("", failure=str(error), kind=KINDS[error.kind])] * post.num_votes

    async def _shorter(self, post: _Post, error: RequestFailed) -> dict[str, Any] | None:
        """The body with as many answer tokens as the server has room for; None where that was not what it said, or the
        room is below what an answer needs."""
        if error.kind != "refused" or post.shortened or not has_context_words(error.words):
            return None
        num_chars = len(post.body["messages"][0]["content"])
        room = room_from(error.words, num_chars)
        if room is None:
            room = room_from(error.words, num_chars, await self._posts.context())
        if room is None or room < post.least:
            return None
        post.shortened = True
        return {**post.body, self._limit_name: min(room, self._config.max_tokens)}

    async def close(self) -> None:
        """Close the connections."""
        await self._posts.close()


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


def read_replies(raw: bytes) -> list[Reply]:
    """The choices of an answer; raises what comes of one that is not in the API's form."""
    answer = json.loads(raw)
    choices = answer["choices"]
    usage = answer.get("usage")
    return [
        Reply(
            text=str(choice["message"].get("content") or ""),
            truncated=choice.get("finish_reason") == "length",
            output_tokens=_count(usage, "completion_tokens") // max(1, len(choices)),
            prompt_tokens=_count(usage, "prompt_tokens"),
        )
        for choice in choices
    ]


def _count(usage: object, name: str) -> int:
    """A number of tokens that the server says, 0 where it says none: a good answer does not depend on it."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0
