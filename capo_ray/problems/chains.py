r"""The laptop world: one-digit chains modulo 10, in which the truth of every step is known.

    prompt    7*8+5-3                     left to right, no precedence, every result modulo 10
    response  7*8=6 | 6+5=1 | 1-3=8 | \boxed{8}        (`|` is a blank line)

A step is wrong when its operand is not the last *shown* result, its operator or digit is not the problem's, or its
result is wrong. A carried-forward wrong result does not make a step wrong. Steps answer the problem's operations by
position, so a missing step makes the steps after it wrong. Training and held-out chains are told apart by the hash of
the prompt: no chain can be in both, whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from capo_ray.types import Problem

Split = Literal["train", "held_out"]
DELIMITER = "\n\n"
HELD_OUT_FRAC = 0.1

_PROMPT = re.compile(r"[0-9](?:[+\-*][0-9])+")
_STEP = re.compile(r"([0-9])([+\-*])([0-9])=([0-9])")
_BOXED = re.compile(r"\\boxed\{([0-9])\}")


def apply(left: int, operator: str, right: int) -> int:
    """`left operator right` modulo 10."""
    if operator == "+":
        return (left + right) % 10
    if operator == "-":
        return (left - right) % 10
    if operator == "*":
        return (left * right) % 10
    raise ValueError(f"expected an operator among + - *, got {operator!r}")


@dataclass(frozen=True, slots=True)
class Chain:
    """A start digit and K operations on digits."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def prompt(self) -> str:
        return str(self.start) + "".join(f"{operator}{digit}" for operator, digit in self.operations)

    @property
    def answer(self) -> str:
        value = self.start
        for operator, digit in self.operations:
            value = apply(value, operator, digit)
        return str(value)


@dataclass(frozen=True, slots=True)
class ChainProblem(Problem):
    """A `Problem` whose steps have a known truth; its solution is the right response."""

    @property
    def chain(self) -> Chain:
        return parse_chain(self.prompt)


def parse_chain(prompt: str) -> Chain:
    """The chain that a prompt spells; raises ValueError on any other text."""
    text = prompt.strip()
    if not _PROMPT.fullmatch(text):
        raise ValueError(f"expected a chain such as 7*8+5-3, got {prompt!r}")
    pairs = zip(text[1::2], text[2::2], strict=True)
    return Chain(int(text[0]), tuple((operator, int(digit)) for operator, digit in pairs))


def split_of(prompt: str) -> Split:
    """The side to which a chain belongs for good."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
    return "held_out" if bucket < HELD_OUT_FRAC * 2**32 else "train"


def draw_chain(rng: random.Random, num_operations: int, split: Split) -> Chain:
    """A random chain of `num_operations` operations that belongs to `split`."""
    while True:
        operations = tuple((rng.choice("+-*"), rng.randrange(10)) for _ in range(num_operations))
        chain = Chain(rng.randrange(10), operations)
        if split_of(chain.prompt) == split:
            return chain


def make_problem(seed: int, index: int, num_operations: int, split: Split = "train") -> ChainProblem:
    """Problem number `index` of a seed, always the same."""
    rng = random.Random(f"chains/{split}/{num_operations}/{seed}/{index}")
    chain = draw_chain(rng, num_operations, split)
    return ChainProblem(
        id=f"chains{num_operations}-{split}-{seed}-{index}",
        prompt=chain.prompt,
        answer=chain.answer,
        solution=response_text(demonstrate(chain)),
        source="chains",
    )


def is_unlearnt(left: int, operator: str, right: int, frac: float) -> bool:
    """Whether a fact is one of the share `frac` of all that a policy is never shown; the same for every seed."""
    if not frac:
        return False
    bucket = int.from_bytes(hashlib.sha256(f"fact/{left}{operator}{right}".encode()).digest()[:4], "big")
    return bucket < frac * 2**32


def demonstrate(
    chain: Chain,
    rng: random.Random | None = None,
    error_prob: float = 0.0,
    misread_prob: float = 0.0,
    unlearnt_frac: float = 0.0,
) -> tuple[str, ...]:
    """The K+1 steps of a response; each result is replaced by a random digit with probability `error_prob`.

    With probability `misread_prob` a step computes, and rightly so, with another operand, operator or digit than it
    should. Results of unlearnt facts are random digits always: what is shown says nothing of the fact. Later steps go
    on from the shown result. What is drawn anew may be what stood there.
    """
    value, steps = chain.start, []
    for operator, digit in chain.operations:
        left = value
        if rng is not None and misread_prob and rng.random() < misread_prob:
            left, operator, digit = _misread(left, operator, digit, rng)
        result = apply(left, operator, digit)
        if rng is not None and (is_unlearnt(left, operator, digit, unlearnt_frac) or rng.random() < error_prob):
            result = rng.randrange(10)
        steps.append(f"{left}{operator}{digit}={result}")
        value = result
    return (*steps, f"\\boxed{{{value}}}")


def _misread(left: int, operator: str, digit: int, rng: random.Random) -> tuple[int, str, int]:
    kind = rng.randrange(3)
    if kind == 0:
        return rng.randrange(10), operator, digit
    if kind == 1:
        return left, rng.choice("+-*"), digit
    return left, operator, rng.randrange(10)


def response_text(steps: Sequence[str]) -> str:
    """A response: its steps with a blank line between them."""
    return DELIMITER.join(steps)


def split_steps(text: str) -> tuple[str, ...]:
    """The step texts of a response, without delimiters."""
    return tuple(part for part in (piece.strip() for piece in text.split(DELIMITER)) if part) or ("",)


def shown_answer(text: str) -> str | None:
    """The digit in the last box of a response, or None."""
    found = _BOXED.findall(text)
    return found[-1] if found else None


def true_wrong_steps(problem: Problem | Chain, response_steps: Sequence[str]) -> frozenset[int]:
    """The 0-based indices of the wrong steps of a response (step texts with or without their delimiters).

    Malformed and extra steps are wrong, and so is a box that comes before every operation was answered.
    """
    chain = problem if isinstance(problem, Chain) else parse_chain(problem.prompt)
    shown: int | None = chain.start
    wrong = set()
    for index, raw in enumerate(response_steps):
        text = raw.strip()
        step, boxed = _STEP.fullmatch(text), _BOXED.fullmatch(text)
        if step and index < len(chain.operations):
            left, operator, right, result = int(step[1]), step[2], int(step[3]), int(step[4])
            asked = (operator, right) == chain.operations[index]
            if left != shown or not asked or result != apply(left, operator, right):
                wrong.add(index)
            shown = result
        elif boxed and index == len(chain.operations):
            if int(boxed[1]) != shown:
                wrong.add(index)
        else:
            wrong.add(index)
            shown = int(step[4]) if step else None
    return frozenset(wrong)


def unasked_steps(problem: Problem | Chain, response_steps: Sequence[str]) -> frozenset[int]:
    """The wrong steps that can be told from the question without any arithmetic; none where it is no chain.

    They do not spell the operation asked for there on the last shown result, or box another digit than that result.
    """
    if not isinstance(problem, Chain) and not _PROMPT.fullmatch(problem.prompt.strip()):
        return frozenset()
    chain = problem if isinstance(problem, Chain) else parse_chain(problem.prompt)
    shown = str(chain.start)
    unasked = set()
    for index, raw in enumerate(response_steps):
        step, boxed = _STEP.fullmatch(raw.strip()), _BOXED.fullmatch(raw.strip())
        if step and index < len(chain.operations):
            operator, digit = chain.operations[index]
            if (step[1], step[2], step[3]) != (shown, operator, str(digit)):
                unasked.add(index)
        elif not (boxed and index == len(chain.operations) and boxed[1] == shown):
            unasked.add(index)
        shown = step[4] if step else ""
    return frozenset(unasked)


def right_results(response_steps: Sequence[str]) -> str:
    """One character a step: the right result of what the step shows, its operands taken as they stand.

    For a box it is the last shown result; for text that is no step, `-`.
    """
    shown, results = "-", []
    for raw in response_steps:
        step = _STEP.fullmatch(raw.strip())
        if step:
            results.append(str(apply(int(step[1]), step[2], int(step[3]))))
            shown = step[4]
        else:
            results.append(shown if _BOXED.fullmatch(raw.strip()) else "-")
    return "".join(results)
