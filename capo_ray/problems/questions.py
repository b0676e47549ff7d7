"""Questions without answers, for whoever wants solutions and not a score."""

from __future__ import annotations

from pathlib import Path

from capo_ray.config.evaluation import BenchConfig
from capo_ray.problems.columns import ANSWERS, QUESTIONS, BadRow, question_of, value_at
from capo_ray.problems.rows import RowReport, read_rows
from capo_ray.types import Problem


def read_questions(config: BenchConfig) -> list[Problem]:
    """The questions of `eval.path` where its rows have no column of answers; none where they have one.

    A file with answers is read as a suite, which asks for one in each row.
    """
    data, path = config.data, config.eval.path
    if not path or data.answer_column:
        return []
    source, found = Path(path).stem or path, list[Problem]()
    report = RowReport(data.max_bad_rows)
    for place, row in read_rows("files", path, data.split, report):
        try:
            if any(_has(row, name) for name in ANSWERS):
                return []
            column = data.question_column or next((name for name in QUESTIONS if _has(row, name)), QUESTIONS[0])
            question = question_of(row, column).strip()
        except BadRow as error:
            report.add(place, str(error))
            continue
        asked = f"{question}\n\n{config.eval.instruction}" if config.eval.instruction else question
        found.append(Problem(f"{source}-{place.rpartition(':')[2]}", asked, "", source="own"))
        if len(found) == config.eval.limit:
            break
    return found


def _has(row: dict[str, object], column: str) -> bool:
    try:
        return value_at(row, column) is not None
    except BadRow:
        return False
