"""Reads solutions for `capo-ray critique`: one per line, or GSM8K's file of four models' solutions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from capo_ray.protocols import RunFailed
from capo_ray.steps import SEGMENTERS
from capo_ray.steps.spans import drop_blank_pieces
from capo_ray.types import Problem

NESTED_SEGMENTER = "newline"
"""GSM8K's model solutions have one step per line."""


@dataclass(frozen=True, slots=True)
class Solution:
    """One solution to be judged, and what is known of it."""

    line: int
    source: str
    problem: Problem
    steps: tuple[str, ...]
    wrong: frozenset[int] | None
    right_answer: bool | None


def read_solutions(file: TextIO, segmenter: str, limit: int) -> Iterator[Solution]:
    """The solutions in their order, at most `limit` (0: all); raises `RunFailed` naming the line and field at fault."""
    count = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RunFailed(f"line {number}: expected a JSON object, got {error}; mend or remove the line") from None
        if not isinstance(row, dict) or not isinstance(row.get("question"), str):
            raise RunFailed(f'line {number}: expected "question" (a text) in the object; mend or remove the line')
        for solution in _nested(row, number) or [_plain(row, number, segmenter)]:
            if limit and count >= limit:
                return
            count += 1
            yield solution


def open_input(path: str) -> TextIO:
    """The file to read; `-` is standard input."""
    import sys

    if path == "-":
        return sys.stdin
    if not Path(path).is_file():
        raise RunFailed(f"--input must be a file of solutions, one JSON object per line, or - (got {path})")
    return Path(path).open(encoding="utf-8")


def cut_text(text: str, segmenter: str) -> tuple[str, ...]:
    """The steps of a text, blank pieces joined to the step before them, as training cuts its responses."""
    bounds = [0, *drop_blank_pieces(text, SEGMENTERS[segmenter](text)), len(text)]
    return tuple(text[a:b] for a, b in pairwise(bounds) if a < b)


def _nested(row: dict[str, Any], number: int) -> list[Solution]:
    """The solutions of a line in GSM8K's shape: `{"<model>": {"solution": …, "is_correct": …}, …}`; else none."""
    truth = row.get("ground_truth")
    problem = Problem(str(number), row["question"], _answer(truth), truth if isinstance(truth, str) else None)
    return [
        Solution(
            number,
            name,
            problem,
            cut_text(value["solution"].strip(), NESTED_SEGMENTER),
            None,
            value["is_correct"] if isinstance(value.get("is_correct"), bool) else None,
        )
        for name, value in row.items()
        if isinstance(value, dict) and isinstance(value.get("solution"), str)
    ]


def _answer(truth: object) -> str:
    return truth.rpartition("A:")[2].strip() if isinstance(truth, str) else ""


def _plain(row: dict[str, Any], number: int, segmenter: str) -> Solution:
    steps = row.get("steps")
    if isinstance(steps, list) and steps and all(isinstance(step, str) for step in steps):
        cut = tuple(steps)
    elif isinstance(row.get("response"), str):
        cut = cut_text(row["response"], segmenter)
    else:
        raise RunFailed(f'line {number}: expected "response" (a text) or "steps" (texts); mend or remove the line')
    wrong = row.get("wrong_steps")
    if wrong is not None and not (
        isinstance(wrong, list) and all(type(step) is int and 0 <= step < len(cut) for step in wrong)
    ):
        raise RunFailed(
            f'line {number}: "wrong_steps" must be indices in 0..{len(cut) - 1} of the {len(cut)} steps (got '
            f"{str(wrong)[:60]}); steps are cut by credit.segmenter={segmenter}"
        )
    solution = row.get("solution")
    return Solution(
        number,
        str(row.get("source", "")),
        Problem(str(row.get("id", number)), row["question"], str(row.get("answer", "")), solution),
        cut,
        None if wrong is None else frozenset(wrong),
        row["is_correct"] if isinstance(row.get("is_correct"), bool) else None,
    )
