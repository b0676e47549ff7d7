r"""The world of word problems: a few sums told in English, in which the truth of every step is known.

    prompt    Mia has 3 boxes with 6 shells in each. She gives 5 shells to Omar. How many shells does Mia have now?
    response  Mia has 3 * 6 = 18 shells.
              Mia has 18 - 5 = 13 shells left.
              \boxed{13}

What is asked is a list of operations, each on numbers of the question or results of earlier ones. A step is wrong when
it computes what is not among those still to be done (on the results *shown*), when a result is wrong, when it has an
equals sign that is not of one sum of two numbers, or when it boxes anything but the last result, or before all is done.
A wrong result that is carried forward does not make a step wrong, and neither does a sentence without a calculation.
"""

from __future__ import annotations

import hashlib
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

from capo_ray.problems.chains import HELD_OUT_FRAC, Split, is_unlearnt
from capo_ray.problems.scenes import MAX_VALUE, MIN_VALUE
from capo_ray.problems.stories import Operation, Telling, tell
from capo_ray.problems.streams import DrawnSource
from capo_ray.types import Problem

Lengths = tuple[int, int]
"""Fewest and most operations, both included."""
Sum = tuple[Fraction, str, Fraction, Fraction]
"""left, sign, right, shown result."""

_APPLY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_NUMBER = r"\$?(\d{1,9}(?:\.\d{1,9})?)"
_SUM = re.compile(
    rf"(?<![\d.+\-*/] )(?<![\d.+\-*/]){_NUMBER} ?([+\-*/]) ?{_NUMBER} ?= ?{_NUMBER}(?!\.?\d)(?! ?[+\-*/=])"
)
_BOXED = re.compile(rf"\\boxed\{{{_NUMBER}\}}")
_IN_WORDS = {"twice": Fraction(2)}


@dataclass(frozen=True, slots=True)
class WordProblem(Problem):
    """A `Problem` whose steps have a known truth; its solution is a right response, its answer the last result."""

    operations: tuple[Operation, ...] = ()


class WordSource(DrawnSource):
    """A run's word problems, drawn apart from its lessons."""

    def __init__(self, lengths: Lengths, max_value: int, seed: int) -> None:
        super().__init__(lambda seed, index: make_problem(f"run-{seed}", index, lengths, max_value=max_value), seed)


def make_problem(
    seed: int | str, index: int, lengths: Lengths, split: Split = "train", max_value: int = MAX_VALUE
) -> WordProblem:
    """Problem number `index` of a seed, always the same; its numbers are at most `max_value`."""
    rng = random.Random(f"words/{split}/{lengths}/{seed}/{index}")
    while True:
        telling = tell(rng, rng.randint(*lengths), max_value)
        if split_of(telling) == split:
            break
    answer = str(telling.operations[-1].value)
    return WordProblem(
        id=f"words-{split}-{seed}-{index}",
        prompt=telling.prompt,
        answer=answer,
        solution="\n".join([*telling.lines, f"\\boxed{{{answer}}}"]),
        source="words",
        operations=telling.operations,
    )


def split_of(telling: Telling) -> Split:
    """The side to which a problem belongs for good, by its parts and numbers: names and wording do not matter."""
    bucket = int.from_bytes(hashlib.sha256(telling.key.encode()).digest()[:4], "big")
    return "held_out" if bucket < HELD_OUT_FRAC * 2**32 else "train"


def word_lessons(
    seed: int, lengths: Lengths, max_value: int = MAX_VALUE, unlearnt_frac: float = 0.0
) -> Iterator[tuple[str, str]]:
    """Endless (question, solution) pairs of training problems, true but for a share of all sums (`demonstrate`)."""
    for index in count():
        problem = make_problem(seed, index, lengths, max_value=max_value)
        rng = random.Random(f"lesson/{problem.id}")
        yield problem.prompt, demonstrate(problem, rng, unlearnt_frac, max_value)


def demonstrate(problem: WordProblem, rng: random.Random, unlearnt_frac: float, max_value: int) -> str:
    """The solution, with results drawn at random where the sum is one of the share that is not taught.

    Later lines go on from what was shown; what of it is no whole number that a story may have is drawn too.
    """
    *lines, _ = (problem.solution or "").split("\n")
    shown: list[int] = []
    for at, (line, (a, sign, b, a_of, b_of)) in enumerate(zip(lines, problem.operations, strict=True)):
        left, right = (value if of < 0 else shown[of] for value, of in ((a, a_of), (b, b_of)))
        result = _apply(Fraction(left), sign, Fraction(right))
        told = result is not None and result.denominator == 1 and MIN_VALUE <= result <= max_value
        if not told or is_unlearnt(left, sign, right, unlearnt_frac):
            result = Fraction(rng.randint(MIN_VALUE, max_value))
        lines[at] = _SUM.sub(f"{left} {sign} {right} = {result}", line)
        shown.append(int(result or 0))
    return "\n".join([*lines, f"\\boxed{{{shown[-1]}}}"])


def true_wrong_steps(problem: WordProblem, response_steps: Sequence[str]) -> frozenset[int]:
    """The 0-based indices of the wrong steps of a response (step texts with or without their delimiters)."""
    shown: dict[int, Fraction] = {}
    wrong = set()
    for index, text in enumerate(response_steps):
        sums = _SUM.findall(text)
        if len(sums) != text.count("="):
            wrong.add(index)
        for left, sign, right, result in map(_read, sums):
            place = _find(problem.operations, shown, left, sign, right)
            if place is None or _apply(left, sign, right) != result:
                wrong.add(index)
            if place is not None:
                shown[place] = result
        if "\\boxed" in text:
            box, last = _BOXED.search(text), len(problem.operations) - 1
            if not box or len(shown) <= last or Fraction(box[1]) != shown[last]:
                wrong.add(index)
    return frozenset(wrong)


def unasked_steps(problem: Problem, response_steps: Sequence[str]) -> frozenset[int]:
    """Steps that can be told to be wrong from the question without arithmetic, and without its solution.

    One that is neither a sum nor a box, takes a number that is not left of the question's and of the results of asked
    sums (each is taken once), or boxes another number than the result of the last sum, if that was asked, or any before
    all numbers of the question were used. It is blind to the wrong operation on the right numbers.
    """
    spare = Counter(Fraction(number) for number in re.findall(r"\d+", problem.prompt))
    spare.update({value: problem.prompt.lower().count(word) for word, value in _IN_WORDS.items()})
    unused, last = {number for number, times in spare.items() if times}, None
    unasked = set()
    for index, text in enumerate(response_steps):
        sums, box = [_read(found) for found in _SUM.findall(text)], _BOXED.search(text)
        if len(sums) != text.count("=") or not (sums or box):
            unasked.add(index)
        for left, _, right, result in sums:
            taken = Counter((left, right))
            if not taken <= spare:
                unasked.add(index)
                last = None
                continue
            unused -= {left, right}
            spare -= taken
            spare[result] += 1
            last = result
        if "\\boxed" in text and (not box or Fraction(box[1]) != last or unused):
            unasked.add(index)
    return frozenset(unasked)


def _read(found: tuple[str, str, str, str]) -> Sum:
    left, sign, right, result = found
    return Fraction(left), sign, Fraction(right), Fraction(result)


def _apply(left: Fraction, sign: str, right: Fraction) -> Fraction | None:
    """The value of a sum; None where there is none."""
    return None if sign == "/" and right == 0 else _APPLY[sign](left, right)


def _find(
    operations: Sequence[Operation], shown: Mapping[int, Fraction], left: Fraction, sign: str, right: Fraction
) -> int | None:
    """The first operation still to be done that takes these numbers, as far as they were shown; None: there is none."""
    for place, operation in enumerate(operations):
        if place in shown or operation.sign != sign:
            continue
        a, b = (
            Fraction(value) if of < 0 else shown.get(of)
            for value, of in ((operation.left, operation.left_of), (operation.right, operation.right_of))
        )
        if (left, right) == (a, b) or (sign in "+*" and (left, right) == (b, a)):
            return place
    return None
