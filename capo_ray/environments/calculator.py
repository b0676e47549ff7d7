r"""A calculator: what a small policy cannot compute in its head, it may ask for.

    question  (47+86)*31                 say  calc 47+86     read  133
                                         say  calc 133*31    read  4123
                                         say  \boxed{4123}                    not a call: the episode ends, and the
                                                                              verifier reads this turn
An expression goes through an exact parser with bounds on its length, depth and numbers, never through `eval`; what it
cannot read is answered with an error, and changes nothing.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from capo_ray.critics.expressions import NotArithmetic, Token, evaluate
from capo_ray.environments.reply import Reply, Task
from capo_ray.types import Problem

CALL = "calc"
MAX_CHARS = 200
MAX_DIGITS = 40
HELD_OUT_FRAC = 0.1
_CALL = re.compile(rf"(?:^|\n)[ \t]*{CALL}[ \t]+([^\n]*)\s*\Z")
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|([-+*/^()]))")


def reply(task: Task, said: Sequence[str]) -> Reply:
    """The value of the last turn's call; the state is all that has been said."""
    state = "\n".join(text.strip() for text in said)
    if not said:
        return Reply(state=state)
    found = _CALL.search(said[-1])
    if not found:
        return Reply(state=state, done=True)
    try:
        return Reply(calculate(found[1], int(task.settings["max_operations"])), state)
    except NotArithmetic as error:
        return Reply(f"error: {error}", "\n".join(text.strip() for text in said[:-1]), legal=False)


def calculate(expression: str, max_operations: int = 0) -> str:
    """The exact value of an expression as text, a fraction where it is none of few digits; raises `NotArithmetic`."""
    tokens = _tokens(expression.strip())
    count = sum(token in ("+", "-", "*", "/", "^") for token in tokens[1:])  # a sign in front is none
    if max_operations and count > max_operations:
        raise NotArithmetic(f"more than {max_operations} operations in a call")
    value = evaluate(tokens, percent=False)
    text = str(value)
    if len(text) > MAX_DIGITS:
        raise NotArithmetic("number too large")
    return text


def _tokens(text: str) -> list[Token]:
    if len(text) > MAX_CHARS:
        raise NotArithmetic("too long")
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise NotArithmetic(f"unexpected {text[at]}")
        tokens.append(Fraction(found[1]) if found[1] else found[2])
        at = found.end()
    return tokens


def make_problem(seed: int, index: int, split: str, settings: Mapping[str, Any]) -> Problem:
    """Problem number `index` of a seed, always the same; its solution is the turns that solve it."""
    operations, largest = int(settings["num_operations"]), int(settings["max_number"])
    rng = random.Random(f"calculator/{split}/{operations}/{largest}/{seed}/{index}")
    while True:
        numbers = [rng.randint(2, largest) for _ in range(operations + 1)]
        operators = [rng.choice("+-*") for _ in range(operations)]
        question, value, calls = str(numbers[0]), numbers[0], list[str]()
        for k, (operator, right) in enumerate(zip(operators, numbers[1:], strict=True)):
            question = f"({question}){operator}{right}" if k else f"{question}{operator}{right}"
            calls.append(f"{CALL} {value}{operator}{right}")
            value = {"+": value + right, "-": value - right, "*": value * right}[operator]
        if ("held_out" if _bucket(question) < HELD_OUT_FRAC else "train") == split:
            solution = "\n".join([*calls, f"\\boxed{{{value}}}"])
            return Problem(f"calculator-{split}-{seed}-{index}", question, str(value), solution, "calculator")


def _bucket(question: str) -> float:
    """In [0, 1): on which side a question stands for good."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") / 2**32
