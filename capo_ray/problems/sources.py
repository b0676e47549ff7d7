"""The problems of a run: an endless stream of those to train on, and a list of those held out, from chains or files."""

from __future__ import annotations

import pkgutil
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from capo_ray.config.environment import EnvironmentBase
from capo_ray.config.sections import DataConfig
from capo_ray.problems import haystack, words
from capo_ray.problems.chains import make_problem
from capo_ray.problems.columns import (
    BOXED,
    BadRow,
    Layout,
    boxed_answer,
    find_layout,
    question_of,
    system_of,
    text_of,
    worked_of,
)
from capo_ray.problems.curriculum import Curriculum
from capo_ray.problems.files import left_out
from capo_ray.problems.rows import Kind, Row, RowReport, read_rows
from capo_ray.problems.streams import ChainSource, EnvironmentSource, ProblemSource, RowSource
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem

SYNTHETIC = "capo_ray.synthesis.live:program_source"
"""The source of data.kind=synthetic, found when it is first needed: its room stands above this one."""
_MORE = "give data.eval_path or raise data.eval_frac"
HELD_OUT_SEED = 0  # the same held-out chains for every run seed, so that runs compare
_CALCULATOR_MARKS = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Training problems, held-out problems, the bad rows that were left out (`place: reason`), and what to tell."""

    train: ProblemSource
    _held_out: Sequence[Problem] | Callable[[int], Sequence[Problem]]  # a function: drawn on demand
    bad_rows: tuple[str, ...] = ()
    chain_steps: int = 0
    notes: tuple[str, ...] = ()
    """How the rows were read where the configuration left it open, for the user to check."""

    def held_out(self, n: int) -> list[Problem]:
        """The first n held-out problems, fewer where there are fewer; the same for every run seed."""
        return list(self._held_out(n) if callable(self._held_out) else islice(self._held_out, n))


def build_problems(config: DataConfig, seed: int, environment: EnvironmentBase | None = None) -> ProblemSet:
    """The problems of a run; RunFailed with a sentence on a missing file, empty data or too many bad rows."""
    if config.kind == "chains":
        chains, steps = ChainSource(config.chain_steps, seed), config.chain_steps

        def drawn(n: int) -> list[Problem]:
            return [make_problem(HELD_OUT_SEED, i, steps, "held_out") for i in range(n)]

        return ProblemSet(_with_curriculum(chains, config, seed), drawn, chain_steps=steps)
    if config.kind == "words":
        lengths, largest = (config.min_steps, config.max_steps), config.max_value

        def told(n: int) -> list[Problem]:
            return [words.make_problem(HELD_OUT_SEED, i, lengths, "held_out", largest) for i in range(n)]

        return ProblemSet(_with_curriculum(words.WordSource(lengths, largest, seed), config, seed), told)
    if config.kind == "environment":
        assert environment is not None, "data.kind=environment is refused without one"
        return _of_environment(config, seed, environment)
    if config.kind == "haystack" and config.makes_problems:
        steps, size = config.chain_steps, config.haystack_size

        def hidden(n: int) -> list[Problem]:
            return [haystack.make_problem(HELD_OUT_SEED, i, steps, size, "held_out") for i in range(n)]

        return ProblemSet(_with_curriculum(haystack.HaystackSource(steps, size, seed), config, seed), hidden)
    return _of_files(config, seed)


def _of_environment(config: DataConfig, seed: int, environment: EnvironmentBase) -> ProblemSet:
    """Its rows where it has some, else what it makes of a seed."""
    if environment.rows:
        read = pkgutil.resolve_name(environment.rows)
        train, held_out = read(environment.model_dump(mode="json"), config.eval_frac)
        if not train or not held_out:
            raise RunFailed(
                f"expected rows of environment={environment.kind} to train on and others to hold out, got "
                f"{len(train)} and {len(held_out)}: make it with more rows (environment.args) or with an "
                "evaluation set of its own"
            )
        return ProblemSet(_with_curriculum(RowSource(train, seed), config, seed), held_out)
    own = EnvironmentSource(environment, seed)
    return ProblemSet(_with_curriculum(own, config, seed), lambda n: own.held_out(HELD_OUT_SEED, n))


def _of_files(config: DataConfig, seed: int) -> ProblemSet:
    """The rows of files, read, parted, and made anew where the kind says so."""
    report, notes = RowReport(config.max_bad_rows), list[str]()
    rows = read_problems(config, config.path, config.split, report, notes)
    held_out = read_problems(config, config.eval_path, config.eval_split, report, notes) if config.eval_path else []
    train, held_out = _apart(rows, held_out, 0.0 if config.eval_path else config.eval_frac)
    if asked_twice := len(rows) - len(train) - (0 if config.eval_path else len(held_out)):
        notes.append(f"{config.path}: {asked_twice} rows are not trained on, for the same questions are held out")
    if not held_out:
        notes.append(f"{config.path}: none of {len(rows)} rows is held out, so that no accuracy is measured; {_MORE}")
    known = {problem.prompt for problem in held_out}
    if config.kind == "haystack":
        train, held_out = (haystack.mix_rows(side, config.haystack_size) for side in (train, held_out))
    if not train:
        raise RunFailed(
            f"expected training problems in {config.path}, got none after {len(report.bad)} bad and "
            f"{len(held_out)} held-out rows{_first_of(report)}: check data.path, data.eval_frac and the column names"
        )
    stream: ProblemSource = RowSource(train, seed)
    if config.kind == "synthetic":
        worked = _worked(config, known)
        stream = pkgutil.resolve_name(SYNTHETIC)(config.path, worked, known, seed, config.number_span)
    source = _with_curriculum(stream, config, seed)
    return ProblemSet(source, held_out, tuple(report.bad), notes=tuple(notes))


def _apart(rows: list[Problem], held_out: list[Problem], frac: float) -> tuple[list[Problem], list[Problem]]:
    """Those to train on and those held out, of which none is among the first; of none, the last `frac` of the rows."""
    if not held_out:
        cut = len(rows) - round(len(rows) * frac)
        rows, held_out = rows[:cut], rows[cut:]
    known = {_asked(problem) for problem in held_out}
    return [problem for problem in rows if _asked(problem) not in known], held_out


def _asked(problem: Problem) -> str:
    """The question whatever its line ends, blanks and composed characters are: two files seldom have them alike."""
    return " ".join(unicodedata.normalize("NFC", problem.prompt).split())


def _worked(config: DataConfig, known: Collection[str]) -> list[tuple[str, str]]:
    """Question and worked answer of each row as they stand there, those held out left out."""
    question, answer = config.question_column or "question", config.answer_column or "answer"
    rows = read_rows("files", config.path, config.split, RowReport(config.max_bad_rows))
    texts = ((str(row.get(question) or "").strip(), str(row.get(answer) or "")) for _, row in rows)
    return [(asked, worked) for asked, worked in texts if asked not in known]


def _first_of(report: RowReport) -> str:
    return f" (the first bad one: {report.bad[0]})" if report.bad else ""


def _with_curriculum(source: ProblemSource, config: DataConfig, seed: int) -> ProblemSource:
    return source if config.curriculum.kind == "none" else Curriculum(source, config.curriculum, seed)


def read_problems(
    config: DataConfig, path: str, split: str, report: RowReport, notes: list[str], limit: int | None = None
) -> list[Problem]:
    """The problems of the files or the split behind a path, in order, of the first `limit` rows.

    `notes` gets a line on columns that were found, and on turns of chats that were left out.
    """
    assert config.kind != "chains" and config.kind != "environment" and config.kind != "words"
    kind: Kind = "files" if config.kind == "synthetic" or config.kind == "haystack" else config.kind
    given = [name for name in (config.question_column, config.answer_column) if name]

    def find(row: Mapping[str, Any]) -> Layout:
        asked = (config.question_column, config.answer_column, config.answer_marker, config.solution_column)
        return find_layout(row, *asked)

    beside = [name for name in (config.solution_column, config.context_column, config.evidence_column) if name]
    rows = read_rows(kind, path, split, report, given + beside if len(given) == 2 else ())
    said = "" if len(given) == 2 else "questions are read from {question!r}, answers from {answer!r}{marker}{solution}"

    def make(layout: Layout, row: Mapping[str, Any], problem_id: str, source: str) -> Problem:
        problem = to_problem(layout, row, problem_id, source)
        if not config.context_column:
            return problem
        return haystack.with_context(
            problem, *haystack.read_sentences(row, config.context_column, config.evidence_column)
        )

    problems = collect(islice(rows, limit), path, find, make, said, report, notes)
    if rest := left_out(path, split):
        names = ", ".join(one.name for one in rest[:4]) + (", …" if len(rest) > 4 else "")
        notes.append(f"{path}: {len(rest)} files whose names tell no split are left out: {names}; move or rename them")
    return problems


def collect(
    rows: Iterable[Row],
    path: str,
    find: Callable[[Mapping[str, Any]], Layout],
    make: Callable[[Layout, Mapping[str, Any], str, str], Problem],
    words: str,
    report: RowReport,
    notes: list[str],
) -> list[Problem]:
    """What `make` makes of rows, each file being laid out as `find` says of the first row where it can.

    `words` tell the layout that was found, in `notes`; empty where it was given.
    """
    source = Path(path).stem or path
    problems: list[Problem] = []
    layout, file, num_files, left_out = None, "", 0, 0
    for place, row in rows:
        name, _, number = place.rpartition(":")
        if name != file:  # shards number their rows alike, and may be laid out differently
            layout, file, num_files = None, name, num_files + 1
        try:
            layout = layout or find(row)
            row_id = f"{source}-{number}" if num_files == 1 else f"{source}-{num_files}-{number}"
            problems.append(make(layout, row, row_id, source))
            left_out += bool(system_of(row, layout.question))
        except BadRow as error:
            report.add(place, str(error))
        if layout and num_files == 1 and not notes and words:
            mark = f", after {layout.marker}" if layout.marker else ""
            worked = f", reference solutions from {layout.solution!r}" if layout.solution else ""
            found = {"question": layout.question, "answer": layout.answer, "marker": mark, "solution": worked}
            notes.append(f"{path}: {words.format(**found)}")
    if left_out:
        notes.append(f"{path}: the system turn of {left_out} rows is left out; model.system_prompt is what is sent")
    return problems


def to_problem(layout: Layout, row: Mapping[str, Any], problem_id: str, source: str) -> Problem:
    """The problem of a row.

    Its reference solution is what the solution's own column holds, or, where the layout has none, what stands before
    the answer's marker (`<<…>>` removed), with boxes the whole column.
    """
    question = question_of(row, layout.question).strip()
    answer, worked = text_of(row, layout.answer), ""
    if layout.marker == BOXED:
        answer, worked = boxed_answer(answer), answer
    elif layout.marker:
        worked, mark, after = answer.rpartition(layout.marker)
        if not mark or not after.strip():
            raise BadRow(f"expected an answer after {layout.marker!r} in {layout.answer!r}, got {answer[-40:]!r}")
        answer, worked = after, _CALCULATOR_MARKS.sub("", worked)
    if layout.solution:
        worked = worked_of(row, layout.solution)
    return Problem(problem_id, question, answer.strip(), worked.strip() or None, source)
