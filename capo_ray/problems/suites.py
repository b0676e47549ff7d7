"""The problems of a benchmark: a declared suite's rows, from a file or the hub, as the questions that are asked.

Invariant: a problem is named by the text that is asked, so that two evaluations find the ones they share wherever their
data came from; options stand in an order that the seed and the question alone decide.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from capo_ray.config.evaluation import BenchConfig, Suite
from capo_ray.config.sections import DataConfig
from capo_ray.problems.columns import BadRow, checked, text_of, value_at
from capo_ray.problems.rows import Kind, RowReport, read_rows
from capo_ray.problems.sources import read_problems
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem


def suite_problems(name: str, suite: Suite, config: BenchConfig, report: RowReport, notes: list[str]) -> list[Problem]:
    """The problems in the data's order, cut at `eval.limit`; `RunFailed` says where the data is to be had."""
    path = _path_of(name, config)
    if not path and not suite.dataset:
        raise RunFailed(f"suite={name} needs eval.path=FILE, a file of questions and answers (got none)")
    try:
        found = list(_read(suite, config, path, report, notes))
    except RunFailed as error:
        if path:
            raise RunFailed(f"suite={name}: {str(error).replace('data.path', 'eval.path')}") from error
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        if isinstance(error.__cause__, ImportError):
            cause = "needs the package `datasets`, pip install 'capo-ray[hub]'"
        raise RunFailed(
            f"suite={name}: its data set {suite.dataset} is not to be had here ({cause}); give it as a file, "
            f"eval.path=FILE, from {suite.get} ({suite.licence})"
        ) from error
    if not found:
        first = f": {report.bad[0]}" if report.bad else ""
        raise RunFailed(f"suite={name}: expected problems in {path or suite.dataset}, got none{first}")
    instruction = suite.instruction if config.eval.instruction is None else config.eval.instruction
    asked = (f"{p.prompt}\n\n{instruction}" if instruction else p.prompt for p in found)
    return [replace(p, id=key, prompt=text, source=name) for p, (key, text) in zip(found, _named(asked), strict=True)]


def _path_of(name: str, config: BenchConfig) -> str:
    """The suite's own file where one is given; empty: the hub."""
    path = config.eval.path
    if not path or len(config.suite) == 1:
        return path
    found = sorted(Path(path).expanduser().glob(f"{name}*"))
    if not found:
        raise RunFailed(f"eval.path: expected {name}* in the folder {path}, one for each suite, found none")
    return str(found[0])


def _read(suite: Suite, config: BenchConfig, path: str, report: RowReport, notes: list[str]) -> Iterator[Problem]:
    """Problems without an instruction, under the names of their rows."""
    given, limit = config.data, config.eval.limit or None
    kind: Kind = "files" if path else "hub"
    split, where = given.split or suite.split, path or suite.dataset
    if suite.options:
        yield from islice(_choices(suite, config, kind, where, split, report), limit)
        return
    # A file may be laid out otherwise than the data set on the hub, so its columns are found unless they are given.
    data = DataConfig(
        kind=kind,
        path=where,
        question_column=given.question_column or ("" if path else suite.question),
        answer_column=given.answer_column or ("" if path else suite.answer),
        answer_marker=given.answer_marker,
    )
    yield from read_problems(data, where, split, report, notes, limit)


def _choices(
    suite: Suite, config: BenchConfig, kind: Kind, where: str, split: str, report: RowReport
) -> Iterator[Problem]:
    for place, row in read_rows(kind, where, split, report):
        try:
            question = text_of(row, config.data.question_column or suite.question).strip()
            options, right = _options(suite, row, config.data.answer_column or suite.answer)
            checked("".join(options), str(suite.options))
        except BadRow as error:
            report.add(place, str(error))
            continue
        order = random.Random(f"{config.run.seed}/{question}").sample(range(len(options)), len(options))
        shown = "\n".join(f"{letter}. {options[i]}" for letter, i in zip(ascii_uppercase, order, strict=False))
        yield Problem(place, f"{question}\n\n{shown}", ascii_uppercase[order.index(right)])


def _options(suite: Suite, row: dict[str, Any], answer: str) -> tuple[Sequence[str], int]:
    """The options of a row in its own order, and which of them is right."""
    if isinstance(suite.options, str):
        listed = value_at(row, suite.options)
        if not isinstance(listed, list) or not 2 <= len(listed) <= len(ascii_uppercase):
            raise BadRow(f"expected a list of options in {suite.options!r}, got {str(listed)[:40]!r}")
        options = [str(one).strip() for one in listed]
    else:
        options = [text_of(row, column).strip() for column in suite.options]
    told = text_of(row, answer).strip()
    labels = [str(one) for one in value_at(row, suite.labels)] if suite.labels else list(ascii_uppercase)
    names = options if suite.answer_is == "text" else labels[: len(options)]
    if told not in names:
        raise BadRow(f"expected one of {', '.join(names)[:80]} in {answer!r}, got {told[:40]!r}")
    return options, names.index(told)


def _named(texts: Iterator[str]) -> Iterator[tuple[str, str]]:
    """(name, text): the digest of the text, numbered where it is asked more than once."""
    seen: Counter[str] = Counter()
    for text in texts:
        digest = sha256(text.encode()).hexdigest()[:12]
        seen[digest] += 1
        yield digest if seen[digest] == 1 else f"{digest}-{seen[digest]}", text
