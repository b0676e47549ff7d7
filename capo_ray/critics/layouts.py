"""Step-labelled solutions in the layouts that they are published in, as `Solution`s.

    ours             question, steps or response, wrong_steps
    ProcessBench     problem, steps, label: the first wrong step, -1 for none; what follows it is not labelled
    PRM800K          question.problem, label.steps[].completions[].rating: -1 is wrong; not labelled after the last
    Math-Shepherd    input with `ки` after each step, label: the same text with + or - in its place
    TRL              prompt, completions (the steps), labels (true: right)
    GSM8K            a question and several models' solutions

Each reader gets a row that has its columns, and raises `ValueError` naming the one that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capo_ray.types import Problem

MARK = "ки"


@dataclass(frozen=True, slots=True)
class Solution:
    """One solution to be judged, and what is known of it; only of its first `num_labelled` steps (None: of all)."""

    line: int
    source: str
    problem: Problem
    steps: tuple[str, ...]
    wrong: frozenset[int] | None
    right_answer: bool | None
    num_labelled: int | None = None


def layout_of(row: dict[str, Any]) -> str:
    """The name of the published layout that a row is in; empty for our own."""
    question, label = row.get("question"), row.get("label")
    if isinstance(question, dict) and isinstance(label, dict) and "steps" in label:
        return "PRM800K"
    if isinstance(row.get("input"), str) and isinstance(label, str) and MARK in row["input"]:
        return "Math-Shepherd"
    if isinstance(row.get("steps"), list) and isinstance(row.get("problem"), str) and "label" in row:
        return "ProcessBench"
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completions"), list) and "labels" in row:
        return "TRL"
    return ""


def _process_bench(row: dict[str, Any], line: int) -> Solution:
    steps, label = _texts(row["steps"], "steps"), row["label"]
    if type(label) is not int or not -1 <= label < len(steps):
        raise ValueError(f'"label" must be -1 or the first wrong one of the {len(steps)} steps (got {str(label)[:40]})')
    right = row.get("final_answer_correct")
    return Solution(
        line,
        str(row.get("generator", "")),
        Problem(str(row.get("id", line)), row["problem"], ""),
        steps,
        frozenset() if label < 0 else frozenset({label}),
        right if isinstance(right, bool) else None,
        None if label < 0 else label + 1,
    )


def _prm800k(row: dict[str, Any], line: int) -> Solution:
    """The path that the labellers took; where they found an error, it ends with the first of the wrong completions."""
    question = row["question"]
    steps: list[str] = []
    ratings: list[int | None] = []
    for entry in row["label"]["steps"]:
        offered, chosen = entry.get("completions") or [], entry.get("chosen_completion")
        if chosen is None and isinstance(entry.get("human_completion"), dict):
            steps.append(str(entry["human_completion"]["text"]))
            ratings.append(1)
        elif offered:
            taken = offered[chosen or 0]
            steps.append(str(taken["text"]))
            ratings.append(taken.get("rating"))
    if not steps:
        raise ValueError('"label.steps" must hold at least one step with a text')
    rated = [place for place, rating in enumerate(ratings) if rating is not None]
    return Solution(
        line,
        str(row.get("generator", "")),
        Problem(str(line), str(question["problem"]), str(question.get("ground_truth_answer") or "")),
        tuple(steps),
        frozenset(place for place in rated if ratings[place] == -1) if rated else None,
        None,
        max(rated) + 1 if rated else None,
    )


def _math_shepherd(row: dict[str, Any], line: int) -> Solution:
    pieces, label = row["input"].split(MARK), row["label"]
    at, signs = 0, ""
    for piece in pieces[:-1]:
        at += len(piece)
        signs += label[at : at + 1]
        at += 1
    if len(signs) < len(pieces) - 1 or set(signs) - set("+-"):
        raise ValueError(f'"label" must repeat "input" with + or - in place of {MARK} (got {signs[:40]!r} there)')
    question, mark, first = pieces[0].partition("Step 1:")
    steps = [mark + first if mark else pieces[0], *pieces[1:-1]]
    wrong = frozenset(place for place, sign in enumerate(signs) if sign == "-")
    problem = Problem(str(line), question.strip() if mark else "", "")
    return Solution(line, str(row.get("task", "")), problem, tuple(step.strip() + "\n" for step in steps), wrong, None)


def _trl(row: dict[str, Any], line: int) -> Solution:
    steps, labels = _texts(row["completions"], "completions"), row["labels"]
    if not isinstance(labels, list) or not len(labels) == len(steps) or not all(type(one) is bool for one in labels):
        raise ValueError(f'"labels" must be true or false for each of the {len(steps)} "completions"')
    wrong = frozenset(place for place, right in enumerate(labels) if not right)
    return Solution(line, str(row.get("source", "")), Problem(str(line), row["prompt"], ""), steps, wrong, None)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise ValueError(f'"{name}" must be a list of texts')
    return tuple(value)


READERS: dict[str, Callable[[dict[str, Any], int], Solution]] = {
    "ProcessBench": _process_bench,
    "PRM800K": _prm800k,
    "Math-Shepherd": _math_shepherd,
    "TRL": _trl,
}
