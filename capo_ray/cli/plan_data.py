"""What a run would read, for the plan: how rows become problems, and the first of them to look at."""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.config import TrainConfig
from capo_ray.problems import reads_hub
from capo_ray.problems.haystack import mix_rows
from capo_ray.problems.rows import RowReport
from capo_ray.problems.sources import read_problems
from capo_ray.protocols import RunFailed
from capo_ray.steps import split_text
from capo_ray.types import Problem

FIRST_ROWS = 64
SHOWN_CHARS = 100
MANY_SINGLE = 0.5


def first_problems(config: TrainConfig, report: RowReport, notes: list[str]) -> list[Problem]:
    """The problems of the first rows; bad rows go to the report, and what was found out to `notes`."""
    data = config.data
    problems = read_problems(data, data.path, data.split, report, notes, limit=FIRST_ROWS)
    return mix_rows(problems, data.haystack_size) if data.kind == "haystack" else problems


def data_words(config: TrainConfig) -> list[str]:
    """Lines on the data, where they are files that lie here; what is wrong with them the checks say."""
    data, notes, report = config.data, list[str](), RowReport(FIRST_ROWS)
    if data.makes_problems or not data.path or reads_hub(data) or config.cluster.joined:
        return []
    try:
        problems = first_problems(config, report, notes)
    except RunFailed:
        return []
    if not problems:
        return []
    lines = [*notes, f"question  {_short(problems[0].prompt)}", f"answer    {_short(problems[0].answer)}"]
    if problems[0].solution:
        lines.append(f"solution  {_short(problems[0].solution)}")
    lines += _step_words(config, [problem.solution for problem in problems if problem.solution])
    if report.bad:
        lines.append(f"{len(report.bad)} of the first {FIRST_ROWS} rows are bad, such as {report.bad[0]}")
    return ["# data (first problem)", *lines, ""]


def _step_words(config: TrainConfig, solutions: Sequence[str]) -> list[str]:
    """How many steps are cut of real solutions; nothing where there are none, or more than their text is read."""
    if not solutions or config.steps.reads != {"text"}:
        return []
    counts = sorted(len(split_text(text, config.steps)) for text in solutions)
    single = sum(count == 1 for count in counts) / len(counts)
    words = (
        f"steps     {counts[len(counts) // 2]} in the middle one of {len(counts)} reference solutions "
        f"({counts[0]} to {counts[-1]}), as steps.segmenter={config.steps.segmenter} cuts"
    )
    if single < MANY_SINGLE:
        return [words]
    return [
        words,
        f"          {single:.0%} are one step, of which critics can only say all or nothing: try another segmenter",
    ]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}… ({len(text):,} characters)"
