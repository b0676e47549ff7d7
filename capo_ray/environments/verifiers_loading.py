"""An environment of the package `verifiers`, loaded or refused, and what is text in its messages.

Supported: text in chats, system and user messages alone before the first turn, rubrics of Python functions of one
rollout. Refused with a sentence: tools that are called outside the text, a rubric that asks a model, starts processes
or compares rollouts, an environment that asks the model in a way of its own.
"""

from __future__ import annotations

import json
import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Message = tuple[str, str]
"""Role, and text."""
NOT_OURS = {
    "JudgeRubric": "asks a model for its rewards",
    "MathRubric": "starts processes of its own, which a killed reply would leave behind",
}
_LOADED: dict[str, Any] = {}


def environment_of(settings: Mapping[str, Any]) -> Any:
    """The environment of a section; loaded once a process. Raises `ValueError` on one that is not supported."""
    name, args = str(settings["id"]), dict(settings["args"])
    key = json.dumps([name, args], sort_keys=True)
    if key not in _LOADED:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # a bar's thread would not survive a fork
        import verifiers

        if not hasattr(verifiers, "MultiTurnEnv"):
            got = getattr(verifiers, "__version__", "one")
            raise ValueError(
                f"expected a version of verifiers with MultiTurnEnv (got {got}): pip install 'verifiers>=0.1.14,<0.4'"
            )
        env = pkgutil.resolve_name(name)(**args) if ":" in name else verifiers.load_environment(name, **args)
        why = _unsupported(verifiers, env)
        if why:
            raise ValueError(f"environment.id={name} cannot be played here: {why}")
        env.timeout_seconds = None  # it would count the policy's time; environment.timeout_s bounds each reply
        _LOADED[key] = env
    return _LOADED[key]


def _unsupported(package: Any, env: Any) -> str:
    """Why this environment cannot be played; empty where it can."""
    if not isinstance(env, package.MultiTurnEnv):
        return f"it is no MultiTurnEnv, but of type {type(env).__name__}"
    if env.tool_defs:
        return "its tools are called outside the text; one that reads calls in the text can"
    if env.message_type != "chat":
        return f"its messages are no chat (got message_type={env.message_type})"
    if env.requires_group_rollouts:
        return "its rubric compares rollouts with each other, and here each is scored alone"
    if type(env).get_model_response is not package.Environment.get_model_response:
        return "it asks the model in a way of its own (get_model_response)"
    for rubric in _rubrics(env.rubric):
        for name in NOT_OURS.keys() & {kind.__name__ for kind in type(rubric).__mro__}:
            return f"its {name} {NOT_OURS[name]}; give a rubric of Python functions"
    if not any(_rewards(package, rubric) for rubric in _rubrics(env.rubric)):
        return "its rubric has no function with a weight, so that it would reward nothing"
    return ""


def _rewards(package: Any, rubric: Any) -> bool:
    """Whether anything in this rubric can be a reward: of one that scores in its own way nobody knows."""
    own = type(rubric).score_rollout not in (package.Rubric.score_rollout, package.RubricGroup.score_rollout)
    return own or any(rubric.weights)


def _rubrics(rubric: Any) -> Iterator[Any]:
    yield rubric
    for one in getattr(rubric, "rubrics", ()):
        yield from _rubrics(one)


def texts(messages: Any) -> list[Message]:
    """Role and text of each message; raises `ValueError` on what is no text."""
    if isinstance(messages, str):
        return [("user", messages)]
    return [_text(m if isinstance(m, Mapping) else m.model_dump()) for m in messages]


def _text(message: Mapping[str, Any]) -> Message:
    content = message.get("content")
    parts = [{"type": "text", "text": content or ""}] if content is None or isinstance(content, str) else content
    others = {str(part.get("type")) for part in parts} - {"text"}
    if others or message.get("tool_calls"):
        raise ValueError(f"expected messages of text, got {sorted(others)[0] if others else 'a call of a tool'}")
    return str(message["role"]), "".join(part["text"] for part in parts)


def joined(messages: Sequence[Message]) -> str:
    """As one text: the policy's own frame says whose turn it is."""
    return "\n\n".join(text for _, text in messages)


def question_of(row: Mapping[str, Any]) -> str:
    """What a row asks; raises `ValueError` where it holds turns of an assistant."""
    messages = texts(row["prompt"])
    roles = {role for role, _ in messages} - {"system", "user", "text"}
    if roles:
        raise ValueError(f"expected system and user messages before the first turn, got one of {sorted(roles)[0]}")
    return joined(messages)
