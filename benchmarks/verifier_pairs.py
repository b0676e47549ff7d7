"""Groups of 16 pairs made from GSM8K and MATH-500: right ones, right ones in another spelling, and wrong ones."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from capo_ray import answers

GROUP = 16
_MARK = re.compile(r"\$*\\boxed|\$*\\fbox|####|The answer is")
Pairs = list[tuple[str, str]]


def read_solutions(data: Path, name: str) -> list[tuple[str, str]]:
    """Reference answer and worked solution (its final answer cut off) of each problem of one data set."""
    lines = (data / name / "test.jsonl").read_text().splitlines()
    columns = [json.loads(line)["answer"] for line in lines]
    return [(answers.reference_answer(text), _MARK.split(text, maxsplit=1)[0].strip()) for text in columns]


def respell(answer: str, rng: random.Random) -> str:
    """The same answer as another sibling may write it."""
    if answer.lstrip("-").isdigit():
        return rng.choice((answer, f"{answer}.0", f"{int(answer):,}", f"\\${answer}", f"{answer}.00"))
    return rng.choice(
        (answer, answer.replace("\\frac", "\\dfrac"), answer.replace(" ", ""), f" {answer} ", answer + ".")
    )


def make_wrong(answer: str, others: list[str], rng: random.Random) -> str:
    """A wrong answer of the kind that models give."""
    if answer.lstrip("-").isdigit():
        value = int(answer)
        return str(rng.choice((value + rng.randint(1, 9), value * 2, value * 10, -value - 1, value / 3, f"{value}.5")))
    digits = [i for i, char in enumerate(answer) if char.isdigit()]
    if not digits or rng.random() < 0.4:
        return rng.choice(others)
    place = rng.choice(digits)
    return answer[:place] + str((int(answer[place]) + rng.randint(1, 8)) % 10) + answer[place + 1 :]


def make_group(solution: tuple[str, str], others: list[str], index: int, rng: random.Random) -> Pairs:
    """16 pairs with 6 or 7 distinct answers (6.4 on average: 40%)."""
    reference, body = solution
    distinct = 7 if index % 5 in (1, 3) else 6
    right = [reference, respell(reference, rng)]
    wrong = [make_wrong(reference, others, rng) for _ in range(distinct - len(right))]
    spread = right + wrong
    chosen = spread + [rng.choice(spread) for _ in range(GROUP - len(spread))]
    rng.shuffle(chosen)
    return [(reference, f"{body}\n\nSo we get $\\boxed{{{text}}}$") for text in chosen]


def make_pairs(data: Path, count: int, seed: int) -> list[Pairs]:
    """Groups of pairs, alternately from both data sets."""
    rng = random.Random(seed)
    sets = [read_solutions(data, "gsm8k"), read_solutions(data, "math500")]
    references = [[reference for reference, _ in rows] for rows in sets]
    return [make_group(rng.choice(sets[i % 2]), references[i % 2], i, rng) for i in range(count // GROUP)]
