"""Stories with numbers, told in English from the parts of a scene, and the sums that they ask for.

tell(rng, num_operations) -> Telling: the question, the lines that solve it, and what they compute
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import NamedTuple

from capo_ray.problems.scenes import MAX_VALUE, MIN_VALUE, SCENES, SMALL, Part

_STEP = re.compile(r"(\{\w\}|\d+) ([+\-*/]) (\{\w\}|\d+) = \[(\w)\]")
MAX_PARTS = 5
"""An opening, an ending and the events between; more makes a long question of little steps."""


class Operation(NamedTuple):
    """One thing to compute; `left_of` and `right_of` are the operations whose results it takes, -1 the question's."""

    left: int
    sign: str
    right: int
    left_of: int = -1
    right_of: int = -1

    @property
    def value(self) -> int:
        """The expected result; a quotient is whole."""
        values = {
            "+": self.left + self.right,
            "-": self.left - self.right,
            "*": self.left * self.right,
            "/": self.left // self.right if self.right else 0,
        }
        return values[self.sign]


@dataclass(frozen=True, slots=True)
class Telling:
    """A story told: its question, the lines that solve it, and what each of them computes."""

    prompt: str
    lines: tuple[str, ...]
    operations: tuple[Operation, ...]
    key: str
    """Its scene, parts and numbers: the same for stories that differ in names, things and wording alone."""


PEOPLE = (
    *(("Mia", "she"), ("Omar", "he"), ("Lena", "she"), ("Tom", "he"), ("Ana", "she"), ("Ravi", "he"), ("Zoe", "she")),
    *(("Ben", "he"), ("Ines", "she"), ("Max", "he"), ("Ruth", "she"), ("Sam", "he"), ("Kofi", "he"), ("Yuki", "she")),
)
_CASES = {"she": ("She", "she", "her", "Her", "her"), "he": ("He", "he", "his", "His", "him")}


def tell(rng: random.Random, num_operations: int, max_value: int = MAX_VALUE) -> Telling:
    """A story that takes exactly `num_operations` steps, of numbers up to `max_value`."""
    while True:
        told = _try(rng, num_operations, max_value)
        if told is not None:
            return told


def _try(rng: random.Random, num_operations: int, max_value: int) -> Telling | None:
    """A story of a random scene; None where its parts make other steps, or its numbers are not fit."""
    name = rng.choice(list(SCENES))
    scene = SCENES[name]
    opening, ending = rng.randrange(len(scene.openings)), rng.randrange(len(scene.endings))
    places, parts = [opening, ending], [scene.openings[opening], scene.endings[ending]]
    while (missing := num_operations - sum(len(part.steps) for part in parts)) > 0:
        event = rng.choice([k for k, part in enumerate(scene.events) if len(part.steps) <= missing])
        places.append(event)
        parts.insert(-1, scene.events[event])
    if missing < 0 or len(parts) > MAX_PARTS:
        return None
    story = _Story(rng, rng.choice(scene.things), max_value)
    if not all(story.add(part) for part in parts):
        return None
    key = f"{name}/{places}/{story.numbers}"
    return Telling(" ".join(story.said), tuple(story.lines), tuple(story.operations), key)


class _Story:
    """A story while it is told: what x is, where it came from, and who came last."""

    def __init__(self, rng: random.Random, thing: str, max_value: int) -> None:
        self._rng, self._max_value = rng, max_value
        self._people = rng.sample(PEOPLE, 6)
        # Of the other pronoun, so that it is plain who is meant.
        self._friend = rng.choice([name for name, pronoun in PEOPLE if pronoun != self._people[0][1]])
        self._thing, self._person = thing, 0
        self._values: dict[str, int] = {}
        self._owners: dict[str, int] = {}
        self.said: list[str] = []
        self.lines: list[str] = []
        self.numbers: list[int] = []
        self.operations: list[Operation] = []

    def add(self, part: Part) -> bool:
        """Tell a part; False where a number of it would not be whole, or not from `MIN_VALUE` to the largest."""
        sentence = self._rng.choice(part.says)
        asked = sorted(set(re.findall(r"\{([abc])\}", sentence + "".join(part.steps))))
        for name in asked:
            low, high = part.ranges.get(name, SMALL)
            self._values[name] = self._rng.randint(min(low, self._max_value // 2), min(high, self._max_value))
            self._owners.pop(name, None)
        self._person += "{P}" in sentence
        if "x" not in self._values and not part.steps:
            self._values["x"] = self._values["a"]
        self.numbers += [self._values[name] for name in asked]
        self.said.append(self._fill(sentence))
        return all(self._compute(step) for step in part.steps)

    def _compute(self, step: str) -> bool:
        found = _STEP.search(step)
        assert found is not None, step
        left, sign, right, result = found.groups()
        (a, a_of), (b, b_of) = self._operand(left), self._operand(right)
        operation = Operation(a, sign, b, a_of, b_of)
        whole = sign != "/" or a % b == 0
        if not whole or not MIN_VALUE <= operation.value <= self._max_value:
            return False
        self.lines.append(self._fill(step.replace(f"[{result}]", str(operation.value))))
        self.operations.append(operation)
        self._values[result], self._owners[result] = operation.value, len(self.operations) - 1
        return True

    def _operand(self, text: str) -> tuple[int, int]:
        name = text.strip("{}")
        return (int(name), -1) if name.isdigit() else (self._values[name], self._owners.get(name, -1))

    def _fill(self, text: str) -> str:
        name, pronoun = self._people[0]
        capital, he, his, capital_his, him = _CASES[pronoun]
        return text.format(
            **self._values,
            N=name, F=self._friend, P=self._people[self._person][0],
            Q=self._people[max(0, self._person - ("{P}" in text))][0],
            He=capital, he=he, his=his, His=capital_his, him=him, t=self._thing,
        )  # fmt: skip
