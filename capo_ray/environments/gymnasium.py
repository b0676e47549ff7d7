"""Any environment with Gymnasium's face, `reset(seed=…) -> (observation, info)` and `step(action) -> (observation,
reward, terminated, truncated, info)`: played again from its seed for each reply, so its process may be lost.

    environment=gymnasium environment.id=FrozenLake-v1          `gymnasium` must be installed
    environment=gymnasium environment.id=my_package:make        any function that returns one; no need of gymnasium

A turn is the action: its number where actions are numbers, else its text. An environment whose steps are not determined
by its seed cannot be played again, and is not for this door. What it shows is `render()` where that is a text, else the
observation. The last environment is kept, so that a reply costs one step as long as turns come in order.
"""

from __future__ import annotations

import hashlib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capo_ray.environments.reply import Reply, Task
from capo_ray.types import Problem


@dataclass
class _Played:
    """An environment after some turns."""

    env: Any
    reply: Reply
    total: float


_COLOURED = re.compile(r"\x1b\[(\d{1,3})(?:;\d{1,3}){0,4}m([^\x1b]*)\x1b\[0m")
_KEPT: dict[tuple[str, str, tuple[str, ...]], _Played] = {}
"""The one that replied last: by environment, problem and turns."""


def reply(task: Task, said: Sequence[str]) -> Reply:
    """What the environment shows after these turns."""
    name, turns = str(task.settings["id"]), tuple(said)
    played = _KEPT.pop((name, task.id, turns[:-1]), None) if turns else None
    if played is None:
        played = _begin(name, task)
        for turn in turns[:-1]:
            _turn(played, turn, task)
    if turns:
        _turn(played, turns[-1], task)
    for other in _KEPT.values():
        other.env.close()
    _KEPT.clear()
    _KEPT[name, task.id, turns] = played
    return played.reply


def _begin(name: str, task: Task) -> _Played:
    if ":" in name:
        env = pkgutil.resolve_name(name)()
    else:
        import gymnasium

        spec = gymnasium.spec(name)
        shows = "ansi" in getattr(pkgutil.resolve_name(str(spec.entry_point)), "metadata", {}).get("render_modes", ())
        env = gymnasium.make(name, render_mode="ansi") if shows else gymnasium.make(name)
    observation, _ = env.reset(seed=int(task.answer))
    shown = _shown(env, observation)
    return _Played(env, Reply(shown, _key(observation)), 0.0)


def _turn(played: _Played, turn: str, task: Task) -> None:
    """Play one turn; one that is no action is told, and changes nothing."""
    before = played.reply
    action = _action(turn, played.env)
    if action is None:
        played.reply = Reply("error: no action\n" + before.text, before.state, legal=False)
        return
    observation, reward, terminated, truncated, info = played.env.step(action)
    played.total += float(reward)
    done, outcome = bool(terminated or truncated), None
    if done:
        reached = info.get("is_success", played.total >= float(task.settings["success_reward"]))
        outcome = int(bool(reached))
    played.reply = Reply(_shown(played.env, observation), _key(observation), done, outcome, float(reward))


def _action(turn: str, env: Any) -> Any:
    """The action that a turn names; None where it names none."""
    text, space = turn.strip(), getattr(env, "action_space", None)
    if getattr(space, "n", None) is None:
        return text or None
    found = re.fullmatch(r"\D{0,20}(\d{1,6})\D{0,20}", text)
    return int(found[1]) if found and int(found[1]) < int(space.n) else None  # type: ignore[union-attr]


def _shown(env: Any, observation: Any) -> str:
    drawn = env.render() if getattr(env, "render_mode", None) == "ansi" else None
    return without_colours(drawn) if isinstance(drawn, str) else str(observation)


def without_colours(text: str) -> str:
    """The text with what a terminal would colour in brackets: `[S]` on a ground, `(35 R)` in that colour alone."""
    return _COLOURED.sub(lambda m: f"[{m[2]}]" if m[1].startswith("4") else f"({m[1]} {m[2]})", text)


def _key(observation: Any) -> str:
    return hashlib.sha256(repr(observation).encode()).hexdigest()[:16]


def make_problem(seed: int, index: int, split: str, settings: Mapping[str, Any]) -> Problem:
    """An episode by its seed, which is the problem's answer; held-out seeds are odd."""
    number = 2 * (seed * 1_000_003 + index) + (split == "held_out")
    return Problem(f"{settings['id']}-{number}", "", str(number), None, "gymnasium")
