"""Environments of the package `verifiers` for tests: one that does as it is told, and ones that cannot be played."""

from __future__ import annotations

import os
import random
from typing import Any

import verifiers as vf
from datasets import Dataset

ROWS = [{"question": f"Say {i}.", "answer": str(i)} for i in range(4)]


def is_answer(completion: list[Any], answer: str) -> float:
    text = completion[-1].content.strip()
    if text == "unscorable":
        raise ValueError("no score for this")
    return 0.5 if text == "nearly" else float(text == answer)


class Obedient(vf.MultiTurnEnv):
    """Ends at the answer and at `unscorable` and `nearly`; `die`, `fail`, `error` and `rewrite` do so."""

    async def setup_state(self, state: Any) -> Any:
        state["count"] = 0
        return state

    @vf.stop
    async def said_it(self, state: Any) -> bool:
        if not state["trajectory"]:
            return False
        text = state["trajectory"][-1]["completion"][-1].content.strip()
        return text in (state["answer"], "unscorable", "nearly")

    async def env_response(self, messages: list[Any], state: Any, **_: Any) -> list[dict[str, str]]:
        word = messages[-1].content.strip()
        state["count"] += 1
        if word == "die":
            os._exit(3)
        if word == "fail":
            raise ValueError("no such thing")
        if word == "error":
            raise vf.Error("the environment gave up")
        if word == "rewrite":
            messages.pop(0)
        return [{"role": "user", "content": f"{state['count']} {word} {random.randint(0, 10**9)}"}]


def make(held_out: int = 0, **more: Any) -> Any:
    more.setdefault("rubric", vf.Rubric([is_answer]))
    rows = [{"question": f"Say 9{i}.", "answer": f"9{i}"} for i in range(held_out)]
    return Obedient(
        dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(rows) if held_out else None,
        system_prompt="Obey.",
        max_turns=4,
        timeout_seconds=1e-9,  # would end each episode before its first turn
        **more,
    )


class Asking(Obedient):
    """Asks the model in its own way."""

    async def get_model_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def judged() -> Any:
    return make(rubric=vf.RubricGroup([vf.Rubric([is_answer]), vf.JudgeRubric(judge_client=object())]))


def with_tools() -> Any:
    return make(tool_defs=[{"name": "add", "description": "", "parameters": {}}])


def asking() -> Any:
    return Asking(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric([is_answer]))


class Unready(Obedient):
    """Cannot begin."""

    async def setup_state(self, state: Any) -> Any:
        raise ValueError("no board")


def unready() -> Any:
    return Unready(dataset=Dataset.from_list(ROWS), rubric=vf.Rubric([is_answer]))


def unrewarded() -> Any:
    return make(rubric=vf.RubricGroup([vf.Rubric(), vf.Rubric([is_answer], [0.0])]))


def alike() -> Any:
    return Obedient(
        dataset=Dataset.from_list([{**row, "question": "Guess."} for row in ROWS]), rubric=vf.Rubric([is_answer])
    )


def leaving(at_once: bool = False) -> Any:
    if at_once:
        os._exit(0)
    raise SystemExit("not\nhere")


def none() -> Any:
    return object()
