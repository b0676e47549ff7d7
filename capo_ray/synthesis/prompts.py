"""What a generator is asked, from topics and principles, and the candidates in what it answered.

SHARP (arXiv 2505.14147, read at second hand) draws a topic, a difficulty and a blueprint for each problem and holds the
generator to principles; the wording is ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from capo_ray.synthesis.candidates import Candidate

PRINCIPLES = """The problem is of graduate or olympiad difficulty.
The solution has no logical gap.
The answer is one number, or an aggregate of several that the problem states.
The problem is new, not copied from anywhere.
The problem is told in words alone and needs nothing beside them."""
DIFFICULTIES = ("demanding", "hard", "very hard")
BLUEPRINTS = ("step by step", "propose a way, then verify it", "by cases")
_PROBLEM = re.compile(r"<problem>(.*?)</problem>", re.DOTALL)
_SOLUTION = re.compile(r"<solution>(.*?)</solution>", re.DOTALL)
_BOX = re.compile(r"\\boxed\{([^{}]{1,60})\}")


def prompt(number: int, topics: Sequence[Mapping[str, Any]], principles: str, seed: int) -> str:
    """What the generator is asked for candidate `number`; the same whenever it is asked."""
    rng = random.Random(f"prompts/{seed}/{number}")
    topic = rng.choice(list(topics))
    told = ", ".join(str(topic[name]) for name in ("subject", "category", "topic") if topic.get(name))
    return (
        f"Write a {rng.choice(DIFFICULTIES)} problem about {told}, and its solution, {rng.choice(BLUEPRINTS)}.\n\n"
        f"{principles.strip()}\n\n"
        "Write the problem between <problem> and </problem>, then the solution between <solution> and </solution>, "
        f"with a blank line between its steps and its final answer once in \\boxed{{}}. This is problem {number}."
    )


def read_response(number: int, text: str) -> Candidate:
    """The candidate in a generator's answer; what is not there is empty, which the first filter refuses."""
    problems, solutions = _PROBLEM.findall(text), _SOLUTION.findall(text)
    solution = solutions[0].strip() if len(solutions) == 1 else ""
    boxes = _BOX.findall(solution)
    return Candidate(
        number,
        problems[0].strip() if len(problems) == 1 else "",
        solution,
        boxes[0].strip() if len(boxes) == 1 else "",
        "response",
    )
