"""What an environment is asked and what it says, and how both travel to the process in which it runs."""

from __future__ import annotations

import json
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """A problem as its environment sees it, and the settings of the environment's own section."""

    id: str
    question: str
    answer: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What follows a turn.

    `state` is a key of the state that the policy is in now: equal keys, equal states; empty: unknown. `outcome`, 1 or
    0, where the episode is over and the environment tells. `reward` is that of the turn alone. `legal`: whether the
    turn was a move; one that was not has changed nothing.
    """

    text: str = ""
    state: str = ""
    done: bool = False
    outcome: int | None = None
    reward: float = 0.0
    legal: bool = True


Rule = Callable[[Task, Sequence[str]], Reply]


@cache
def rule_of(path: str) -> Rule:
    """The function of `package.module:function`."""
    rule: Rule = pkgutil.resolve_name(path)
    return rule


def serve(request: str, said: str) -> dict[str, Any]:
    """The reply to a request as JSON has it: what runs in the child."""
    asked = json.loads(request)
    reply = rule_of(asked["rule"])(Task(**asked["task"]), tuple(json.loads(said)))
    if not isinstance(reply, Reply):
        raise TypeError(f"expected a Reply from {asked['rule']}, got {type(reply).__name__}")
    if misfit := _misfit(reply):
        raise ValueError(f"expected of the Reply from {asked['rule']} {misfit}")
    # A policy that writes "\\ud800" in JSON can have it read back: no tokenizer and no store takes half a character.
    return asdict(replace(reply, text=_whole(reply.text), state=_whole(reply.state)))


def _misfit(reply: Reply) -> str:
    """What was expected of a reply and what was got; nothing where it fits. An outcome of 0.5 would count as 0."""
    texts_fit = isinstance(reply.text, str) and isinstance(reply.state, str)
    if not texts_fit:
        return f"a text and a state that are strings, got {type(reply.text).__name__}, {type(reply.state).__name__}"
    if reply.outcome is not None and reply.outcome not in (0, 1):
        return f"an outcome of 1, 0 or None, got {reply.outcome!r}"
    if not isinstance(reply.reward, int | float) or not math.isfinite(reply.reward):
        return f"a reward that is a finite number, got {reply.reward!r}"
    return ""


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
