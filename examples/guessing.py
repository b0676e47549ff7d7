"""An environment of the package `verifiers`: `environment=verifiers environment.id=guessing:make`.

A sum is to be told as a number, in at most three turns; a wrong number is answered with "larger" or "smaller".
"""

import random
import re

import verifiers as vf
from datasets import Dataset


def number_in(text):
    """The last number of a text, None without one."""
    found = re.findall(r"\d{1,9}", text)
    return int(found[-1]) if found else None


def is_right(completion, answer):
    """The rubric's one function: whether the last turn says the sum."""
    return float(number_in(completion[-1].content) == int(answer))


class Guessing(vf.MultiTurnEnv):
    """Tells which way a wrong number is off, until the right one or the last turn."""

    @vf.stop
    async def told(self, state):
        turns = state["trajectory"]
        return bool(turns) and is_right(turns[-1]["completion"], state["answer"]) == 1.0

    async def env_response(self, messages, state, **_):
        number = number_in(messages[-1].content)
        if number is None:
            return [{"role": "user", "content": "Say a number."}]
        way = "larger" if number < int(state["answer"]) else "smaller"
        return [{"role": "user", "content": f"No, it is {way}. Say another number."}]


def make(num_rows=256, largest=60, seed=0):
    """The environment; the last quarter of its rows is held out."""
    draw = random.Random(seed)
    pairs = [(draw.randint(2, largest), draw.randint(2, largest)) for _ in range(num_rows)]
    rows = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in pairs]
    cut = num_rows * 3 // 4
    return Guessing(
        dataset=Dataset.from_list(rows[:cut]),
        eval_dataset=Dataset.from_list(rows[cut:]),
        system_prompt="Answer with one number and nothing else.",
        rubric=vf.Rubric([is_right]),
        max_turns=3,
    )
