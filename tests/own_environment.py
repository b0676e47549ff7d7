"""Environments for tests: one that hangs, dies or reaches out when asked to, and one with Gymnasium's face."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from capo_ray.config.environment import PlayedBase
from capo_ray.environments import Reply, Task

ODD_REPLIES = {
    "half": Reply(outcome=cast(int, 0.5)),
    "two": Reply(outcome=2),
    "text": Reply(text=cast(str, None)),
    "state": Reply(state=cast(str, 7)),
    "nan": Reply(reward=math.nan),
}


class Moody(PlayedBase):
    """Replies with what was said; `hang`, `die`, `call` and `fail` do so."""

    rule: ClassVar[str] = "tests.own_environment:reply"
    kind: Literal["moody"] = "moody"
    timeout_s: float = 1.5


def reply(task: Task, said: Sequence[str]) -> Reply:
    word = said[-1].strip() if said else ""
    if word == "hang":
        time.sleep(60)
    if word == "die":
        os._exit(3)
    if word == "call":
        socket.create_connection(("127.0.0.1", 9))
    if word == "fail":
        raise ValueError("no such thing")
    if word in ODD_REPLIES:
        return ODD_REPLIES[word]
    return Reply(f"{len(said)} {word}", state=str(len(said)), done=word == "end")


class Discrete:
    n = 3


class Line:
    """Gymnasium's face: the last of three actions ends with a reward of 1; the observation counts from the seed."""

    action_space = Discrete()
    render_mode = None

    def reset(self, seed: int) -> tuple[int, dict[str, Any]]:
        self.at = seed
        return self.at, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.at += action + 1
        return self.at, float(action == 2), action == 2, False, {}

    def close(self) -> None:
        """Nothing."""
