"""What supervised training is shown: problems with the solution that is to be imitated, as an endless stream.

build_lessons(data, seed) -> ProblemSource      Problem.prompt is read, Problem.solution is learnt
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from capo_ray.config.sft import SftDataConfig
from capo_ray.problems.chains_lessons import Lesson, critic_lessons, policy_lessons
from capo_ray.problems.columns import BadRow, text_of
from capo_ray.problems.rows import RowReport, read_rows
from capo_ray.problems.streams import PlainSource, ProblemSource, RowSource
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem


class LessonSource(PlainSource):
    """Lessons of an endless generator, which begins anew when called; the cursor is how many have been drawn."""

    def __init__(self, begin: Callable[[], Iterator[Lesson]]) -> None:
        self._begin, self._lessons, self._index = begin, begin(), 0

    def next_problem(self, progress: float = 0.0) -> Problem:
        prompt, completion = next(self._lessons)
        self._index += 1
        return Problem(f"lesson-{self._index}", prompt, "", completion, "chains")

    def state(self) -> dict[str, int]:
        return {"index": self._index}

    def restore(self, state: Mapping[str, int]) -> None:
        self._index = int(state["index"])
        self._lessons = islice(self._begin(), self._index, None)


def build_lessons(config: SftDataConfig, seed: int) -> ProblemSource:
    """The lessons of a run; RunFailed with a sentence on a missing file, empty data or too many bad rows."""
    lengths = (config.min_steps, config.max_steps)
    if config.kind == "chains" and config.role == "critic":
        return LessonSource(lambda: critic_lessons(seed, lengths))
    if config.kind == "chains":
        return LessonSource(lambda: policy_lessons(seed, lengths, config.error_prob))
    return RowSource(_read(config), seed)


def _read(config: SftDataConfig) -> list[Problem]:
    report = RowReport(config.max_bad_rows)
    lessons = []
    for place, row in read_rows("jsonl", config.path, "train", report):
        try:
            prompt, completion = text_of(row, config.prompt_column), text_of(row, config.completion_column)
            lessons.append(Problem(place, prompt, "", completion, config.path))
        except BadRow as error:
            report.add(place, str(error))
    if not lessons:
        raise RunFailed(f"expected lines of prompt and response in {config.path}, got none")
    return lessons
