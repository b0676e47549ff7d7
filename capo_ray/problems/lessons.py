"""What supervised training is shown: problems with the solution that is to be imitated, as an endless stream.

build_lessons(data, seed) -> ProblemSource      Problem.prompt is read, Problem.solution is learnt
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from capo_ray.config.sft import SftDataConfig
from capo_ray.problems.chains_lessons import Lesson, critic_lessons, fact_lessons, policy_lessons
from capo_ray.problems.columns import Layout, find_lesson, question_of, solution_of
from capo_ray.problems.rows import RowReport, read_rows
from capo_ray.problems.sources import ProblemSet, collect
from capo_ray.problems.streams import PlainSource, RowSource
from capo_ray.problems.words import word_lessons
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem


class LessonSource(PlainSource):
    """Lessons of an endless generator, which begins anew when called; the cursor is how many have been drawn."""

    def __init__(self, begin: Callable[[], Iterator[Lesson]]) -> None:
        self._begin, self._lessons, self._index = begin, begin(), 0

    def next_problem(self, progress: float = 0.0) -> Problem:
        prompt, completion = next(self._lessons)
        self._index += 1
        return Problem(f"lesson-{self._index}", prompt, completion)

    def state(self) -> dict[str, int]:
        return {"index": self._index}

    def restore(self, state: Mapping[str, int]) -> None:
        self._index = int(state["index"])
        self._lessons = islice(self._begin(), self._index, None)


def build_lessons(config: SftDataConfig, seed: int) -> ProblemSet:
    """The lessons of a run; RunFailed with a sentence on a missing file, empty data or too many bad rows."""
    lengths = (config.min_steps, config.max_steps)
    if config.kind == "chains" and config.role == "critic":
        taught_by = critic_lessons if config.carried else fact_lessons
        return ProblemSet(LessonSource(lambda: taught_by(seed, lengths, config.label_error_prob)), ())
    if config.kind == "chains":
        taught = config.error_prob, config.unlearnt_frac
        return ProblemSet(LessonSource(lambda: policy_lessons(seed, lengths, *taught)), ())
    if config.kind == "words":
        return ProblemSet(LessonSource(lambda: word_lessons(seed, lengths, config.max_value, config.unlearnt_frac)), ())
    report, notes = RowReport(config.max_bad_rows), list[str]()
    rows = RowSource(read_lessons(config, report, notes), seed)
    return ProblemSet(rows, (), tuple(report.bad), notes=tuple(notes))


def read_lessons(config: SftDataConfig, report: RowReport, notes: list[str], limit: int | None = None) -> list[Problem]:
    """The lessons of the first `limit` rows, at least one; as `read_problems`."""
    assert config.kind != "chains" and config.kind != "words"
    given = [name for name in (config.question_column, config.solution_column) if name]

    def find(row: Mapping[str, Any]) -> Layout:
        return find_lesson(row, config.question_column, config.solution_column)

    rows = read_rows(config.kind, config.path, config.split, report, given if len(given) == 2 else ())
    words = "" if len(given) == 2 else "questions are read from {question!r}, solutions from {answer!r}"
    lessons = collect(islice(rows, limit), config.path, find, to_lesson, words, report, notes)
    if not lessons:
        first = f" ({report.bad[0]})" if report.bad else ""
        raise RunFailed(
            f"expected rows with a question and its solution in {config.path}, got none{first}; set "
            "data.question_column and data.solution_column"
        )
    return lessons


def to_lesson(layout: Layout, row: Mapping[str, Any], lesson_id: str, source: str) -> Problem:
    """The lesson of a row."""
    question, solution = question_of(row, layout.question), solution_of(row, layout.answer)
    return Problem(lesson_id, question.strip(), solution, None, source)
