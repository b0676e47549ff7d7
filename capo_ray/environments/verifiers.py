"""Environments of the package `verifiers`, by the face of its versions 0.1.14 to 0.3: `MultiTurnEnv` and its `Rubric`.

    env.rollout(row, client) --messages--> client: waits for the turn <-- policy
                                 |                        ends: rubric.score_rollout(state) -> reward
               those behind the last turn are the reply

The environment's own rollout runs, unchanged, and waits in its client for what the policy says. The rollouts that
replied last are kept; one that is lost with its process is played again from its turns, so replies must be determined
by them (`random` and numpy's are seeded with the problem and its turns before each).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from numpy import random as numpy_random

from capo_ray.environments.reply import Reply, Task
from capo_ray.environments.verifiers_loading import Message, environment_of, joined, question_of, texts

KEPT_ROLLOUTS = 64
REWRITES = "the environment rewrites what was said before, and only one that adds messages behind it can be played"
_KEPT: OrderedDict[tuple[str, tuple[str, ...]], Rollout] = OrderedDict()
_LOOPS: list[asyncio.AbstractEventLoop] = []


def prepare(settings: Mapping[str, Any]) -> None:
    """Load the environment, while this process may still write files; forks of it have a loop of their own."""
    environment_of(settings)
    _client_class()
    os.register_at_fork(after_in_child=_new_loop)


def reply(task: Task, said: Sequence[str]) -> Reply:
    """What the environment says to these turns; the rubric's reward at the end."""
    turns = tuple(said)
    rollout = _KEPT.pop((task.id, turns[:-1]), None) if turns else None
    if rollout is None:
        rollout = Rollout(environment_of(task.settings), task)
        for turn in turns[:-1]:
            rollout.say(turn)
    if turns:
        rollout.say(turns[-1])
    if not rollout.reply.done:
        _keep((task.id, turns), rollout)
    return rollout.reply


class Rollout:
    """One rollout of the environment, as far as it has got; `reply` is its last word."""

    def __init__(self, env: Any, task: Task) -> None:
        self._env, self._task, self._loop = env, task, _loop()
        self._seen: list[Message] = []
        self._asked, self._turn = self._loop.create_future(), self._loop.create_future()
        self._seed()
        client = _client_class()(self._listen)
        self._running = self._loop.create_task(env.rollout(_row_of(env, task), client, "policy", {}))
        messages = self._next_messages()
        if messages is None:
            self._ended()
            raise RuntimeError("the environment ended before the first turn")
        opening = joined(messages)
        if not opening.startswith(task.question):
            raise RuntimeError(REWRITES)
        self._seen = messages
        self.reply = Reply(opening.removeprefix(task.question), self._key())

    def say(self, turn: str) -> None:
        """Hand it the policy's next turn."""
        self._seen = [*self._seen, ("assistant", turn)]
        self._seed()
        self._asked = self._loop.create_future()
        self._turn.set_result(turn)
        messages = self._next_messages()
        if messages is None:
            self.reply = self._end()
            return
        if messages[: len(self._seen)] != self._seen:
            raise RuntimeError(REWRITES)
        text = joined(messages[len(self._seen) :])
        self._seen = messages
        self.reply = Reply(text, self._key())

    def close(self) -> None:
        """End it where it stands."""
        self._running.cancel()
        self._loop.run_until_complete(asyncio.wait({self._running}))

    async def _listen(self, messages: Sequence[Any]) -> str:
        """What the environment's client is asked: the policy's next turn."""
        self._turn = self._loop.create_future()
        self._asked.set_result(texts(messages))
        turn: str = await self._turn
        return turn

    def _next_messages(self) -> list[Message] | None:
        """All messages before the next turn; None where the rollout has ended."""
        either = {self._running, self._asked}
        self._loop.run_until_complete(asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED))
        return None if self._running.done() else self._asked.result()

    def _ended(self) -> Any:
        """The state in which the rollout ended; raises what ended it early."""
        state = self._running.result()
        if state.get("error") is not None:
            raise RuntimeError(f"{type(state['error']).__name__}: {state['error']}")
        return state

    def _end(self) -> Reply:
        state = self._ended()
        reward = self._loop.run_until_complete(_score(self._env.rubric, state))
        reached = reward >= float(self._task.settings["success_reward"])
        text = joined(texts(state.get("final_env_response") or ()))
        return Reply(text, self._key(), done=True, outcome=int(reached), reward=reward)

    def _key(self) -> str:
        """Equal where the same was said."""
        return hashlib.sha256(json.dumps(self._seen).encode()).hexdigest()[:16]

    def _seed(self) -> None:
        number = hashlib.sha256(json.dumps([self._task.id, self._seen]).encode()).digest()
        random.seed(number)
        numpy_random.seed(int.from_bytes(number[:4], "big"))


async def _score(rubric: Any, state: Any) -> float:
    """The rubric's reward; the package makes a function that fails a reward of 0, here it is an error."""
    with _Complaints() as complaints:
        await rubric.score_rollout(state)
        await rubric.cleanup(state)
    if complaints.said:
        raise RuntimeError(complaints.said[0])
    reward = float(state["reward"])
    if not math.isfinite(reward):
        raise RuntimeError(f"the rubric's reward is {reward}")
    return reward


class _Complaints(logging.Handler):
    """What the package logs as errors while this is open, where an environment has turned logging off as well."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []
        self._disabled, self._level = logging.root.manager.disable, logging.getLogger("verifiers").level

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def __enter__(self) -> _Complaints:
        logging.disable(logging.NOTSET)
        logging.getLogger("verifiers").setLevel(min(self._level or logging.ERROR, logging.ERROR))
        logging.getLogger("verifiers").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("verifiers").removeHandler(self)
        logging.getLogger("verifiers").setLevel(self._level)
        logging.disable(self._disabled)


def _row_of(env: Any, task: Task) -> dict[str, Any]:
    """The row of the environment's data that a problem names; of other data, one made of question and answer."""
    name, _, number = task.id.rpartition("/")
    for split, rows in (("train", env.get_dataset), ("held_out", env.get_eval_dataset)):
        if name == f"{task.settings['id']}/{split}":
            row: dict[str, Any] = dict(rows()[int(number)])
            if question_of(row) != task.question:
                raise RuntimeError(f"the environment's data are others each time they are loaded (row {number})")
            return row
    return {"prompt": [{"role": "user", "content": task.question}], "answer": task.answer, "example_id": 0}


@cache
def _client_class() -> type:
    """A client of the package whose every answer is what someone says."""
    import verifiers
    from verifiers.types import Response, ResponseMessage

    class Waiting(verifiers.Client):
        def __init__(self, listen: Any) -> None:
            super().__init__(None)
            self._listen = listen

        async def get_response(self, prompt: Any, model: str, *_: Any, **__: Any) -> Any:
            message = ResponseMessage(content=await self._listen(prompt), finish_reason="stop", is_truncated=False)
            return Response(id="", created=0, model=model, message=message)

        async def _unused(self, *_: Any, **__: Any) -> None:
            raise NotImplementedError

        to_native_tool = to_native_prompt = get_native_response = _unused
        raise_from_native_response = from_native_response = close = _unused

        def setup_client(self, config: Any) -> Any:
            return config

    return Waiting


def _keep(key: tuple[str, tuple[str, ...]], rollout: Rollout) -> None:
    old = [_KEPT.pop(key, None)]
    _KEPT[key] = rollout
    while len(_KEPT) > KEPT_ROLLOUTS:
        old.append(_KEPT.popitem(last=False)[1])
    for one in old:
        if one is not None:
            one.close()


def _loop() -> asyncio.AbstractEventLoop:
    if not _LOOPS:
        _new_loop()
    return _LOOPS[0]


def _new_loop() -> None:
    """A fork must not share its parent's, and a confined process cannot make one: it needs a pair of sockets."""
    _LOOPS[:] = [asyncio.new_event_loop()]
