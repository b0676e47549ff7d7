"""What the benchmark of synthesis and its test share: planted faults and copies, and a world of small tallies in words.

question   Mia had 17 nuts, got 8, lost 3, got 6.
worked     17+8=<<17+8=25>>25          as GSM8K marks its calculations; the answer stands after ####
           25-3=<<25-3=22>>22
           22+6=<<22+6=28>>28
           #### 28
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from capo_ray.problems.chains import HELD_OUT_FRAC, Split
from capo_ray.synthesis import Candidate, Filters, Held, derived_agreement, instances
from capo_ray.synthesis.filters import GRAM, words_of
from capo_ray.synthesis.programs import MARK, Program

NAMES = (
    *("Mia", "Omar", "Lena", "Tom", "Ana", "Ravi", "Zoe", "Ben", "Ines", "Max", "Ruth", "Sam", "Kofi", "Yuki"),
    *("Ida", "Leo", "Nora", "Paul", "Uma", "Finn"),
)
THINGS = ("nuts", "pins", "caps", "eggs", "figs", "keys", "cups", "nets", "pens", "rods", "bags", "lids")
OPERATIONS = 3
LOW, HIGH = 2, 60
"""Between these, both included, are all results."""
SLIP = 3
"""How far a careless result is off, at most."""


@dataclass(frozen=True)
class Tally:
    """What somebody had, got (+) and lost (-)."""

    name: str
    thing: str
    start: int
    changes: tuple[int, ...]

    @property
    def question(self) -> str:
        told = ", ".join(f"{'got' if c > 0 else 'lost'} {abs(c)}" for c in self.changes)
        return f"{self.name} had {self.start} {self.thing}, {told}."

    def results(self, rng: random.Random | None = None, slip_frac: float = 0.0) -> list[int]:
        """What is left after each change; now and then a careless result, with which it goes on."""
        value, found = self.start, list[int]()
        for change in self.changes:
            value += change
            if rng is not None and rng.random() < slip_frac:
                value = max(0, value + rng.randint(-SLIP, SLIP))
            found.append(value)
        return found

    def sums(self, results: Sequence[int]) -> list[str]:
        """Each change as a sum with its result."""
        return [
            f"{before}{change:+d}={after}"
            for before, change, after in zip((self.start, *results), self.changes, results, strict=False)
        ]

    @property
    def worked(self) -> str:
        """As a row of GSM8K has it."""
        lines = [f"{one}".replace("=", f"=<<{one}>>") for one in self.sums(self.results())]
        return "\n".join([*lines, f"#### {self.results()[-1]}"])

    def response(self, rng: random.Random, slip_frac: float) -> str:
        """As a policy is shown it."""
        results = self.results(rng, slip_frac)
        return "\n\n".join([*self.sums(results), f"\\boxed{{{results[-1]}}}"])


def draw_tally(rng: random.Random, split: Split = "train") -> Tally:
    """A tally of that side; the side is told by its question."""
    while True:
        changes = tuple(rng.choice((1, -1)) * rng.randint(2, 9) for _ in range(OPERATIONS))
        one = Tally(rng.choice(NAMES), rng.choice(THINGS), rng.randint(5, 49), changes)
        if all(LOW <= value <= HIGH for value in one.results()) and split_of(one.question) == split:
            return one


def split_of(question: str) -> Split:
    """The side to which a question belongs for good."""
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big")
    return "held_out" if bucket < HELD_OUT_FRAC * 2**32 else "train"


def plant(one: Candidate, rng: random.Random) -> Candidate:
    """A wrong candidate: another answer, a slip that is carried on, or right arithmetic with a wrong number."""
    *_, (text, told) = MARK.findall(one.solution)
    kind = rng.choice(("answer", "slip", "operand"))
    if kind == "answer":
        return replace(one, answer=str(int(float(one.answer.replace(",", ""))) + rng.choice((-2, -1, 1, 2, 10))))
    wrong = str(int(float(told.replace(",", ""))) + rng.randrange(1, 9))
    if kind == "slip":
        return replace(one, answer=wrong, solution=one.solution.replace(f"={told}>>{told}", f"={wrong}>>{wrong}"))
    return replace(one, answer=wrong, solution=one.solution.replace(f"<<{text}={told}>>", f"<<{text}+0={wrong}>>")
                   .replace(f"<<{text}+0={wrong}>>{told}", f"<<{wrong}-0={wrong}>>{wrong}"))  # fmt: skip


def plant_among(programs: Sequence[tuple[str, Program]], num: int) -> dict[str, int]:
    """Of `num` candidates half are made wrong: how many of them are caught, and how many right ones kept."""
    rng, told = random.Random(0), {"wrong": 0, "caught": 0, "right": 0, "kept": 0}
    for one in instances(programs, 0, num):
        wrong = rng.random() < 0.5
        refused = Filters(agreement=derived_agreement).admit(plant(one, rng) if wrong else one)
        told["wrong" if wrong else "right"] += 1
        if wrong == bool(refused):
            told["caught" if wrong else "kept"] += 1
    return told


def copies(question: str) -> Iterator[str]:
    """A held-out question as it is, in other case and punctuation, with other numbers, and, if it is long, within
    another text."""
    yield question
    yield question.upper().replace(",", " ,").replace(".", " ;")
    yield "".join(str((int(c) + 3) % 10) if c.isdigit() else c for c in question)
    if len(words_of(question)) >= GRAM:
        yield f"Here is one. {question} Think well."


def plant_copies(questions: Sequence[str]) -> dict[str, int]:
    """How many copies of held-out questions are caught."""
    held = Held()
    held.add(questions)
    planted = [copy for question in questions for copy in copies(question)]
    return {"copies": len(planted), "copies_caught": sum(map(held.leaks, planted))}
