"""Rows of files and data sets: JSONL, Parquet and Hugging Face data sets as dictionaries, bad rows counted by place.

A bad row is reported as `file:line: reason` (the row number for Parquet and hub, from 1); more of them than the budget
end the run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from capo_ray.config.sft import SftDataConfig
from capo_ray.protocols import RunFailed

MAX_ROW_BYTES = 1 << 20
"""Of a line, or a text in a column: to tokenise a megabyte takes seconds in which a run stands still."""
Kind = Literal["jsonl", "parquet", "hub"]


class BadRow(ValueError):
    """A row that cannot be used; the message says expected and got."""


class RowReport:
    """The bad rows met so far, as `place: reason`; raises RunFailed once they exceed the budget."""

    def __init__(self, max_bad_rows: int) -> None:
        self.max_bad_rows = max_bad_rows
        self.bad: list[str] = []

    def add(self, place: str, reason: str) -> None:
        """Count one bad row."""
        self.bad.append(f"{place}: {reason}")
        if len(self.bad) > self.max_bad_rows:
            raise RunFailed(
                f"expected at most {self.max_bad_rows} bad rows (max_bad_rows), got {len(self.bad)}: "
                f"{'; '.join(self.bad[:3])}{'; …' if len(self.bad) > 3 else ''}; mend the file or set the column names"
            )


def read_rows(kind: Kind, path: str, split: str, report: RowReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of each readable row, in file order; unreadable ones go to the report."""
    if not path:
        raise RunFailed(
            f"data.kind={kind} needs data.path, a {'data-set name' if kind == 'hub' else 'file'} (got none)"
        )
    if kind == "hub":
        return _hub_rows(path, split)
    if not Path(path).is_file():
        raise RunFailed(f"expected a {kind} file at data.path, got {path!r}, which is no file: check the path")
    return _jsonl_rows(Path(path), report) if kind == "jsonl" else _parquet_rows(Path(path))


def text_of(row: dict[str, Any], column: str) -> str:
    """The non-empty text in a column; raises BadRow."""
    if column not in row:
        raise BadRow(f"expected a column {column!r}, got {', '.join(map(repr, row)) or 'no column'}")
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"expected text in {column!r}, got {type(value).__name__}")
    if not str(value).strip():
        raise BadRow(f"expected text in {column!r}, got an empty one")
    if isinstance(value, str) and len(value) > MAX_ROW_BYTES:
        raise BadRow(f"expected at most {MAX_ROW_BYTES >> 20} MiB of text in {column!r}, got {len(value) / 2**20:.1f}")
    return str(value)


def read_lessons(config: SftDataConfig, seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, completion) pairs of a file, shuffled anew each epoch; RunFailed where it holds none."""
    report = RowReport(config.max_bad_rows)
    lessons = []
    for place, row in read_rows("jsonl", config.path, "train", report):
        try:
            lessons.append((text_of(row, config.prompt_column), text_of(row, config.completion_column)))
        except BadRow as error:
            report.add(place, str(error))
    if not lessons:
        raise RunFailed(f"expected lines of prompt and response in {config.path}, got none")
    return _epochs(lessons, seed)


def _epochs(lessons: list[tuple[str, str]], seed: int) -> Iterator[tuple[str, str]]:
    epoch = 0
    while True:
        yield from random.Random(f"lessons/{seed}/{epoch}").sample(lessons, len(lessons))
        epoch += 1


def _jsonl_rows(path: Path, report: RowReport) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            if len(line) > MAX_ROW_BYTES:
                report.add(place, f"expected a line of at most {MAX_ROW_BYTES >> 20} MiB, got a longer one")
                continue
            try:
                row = json.loads(line)
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                report.add(place, f"expected a JSON object, got {line[:40]!r} ({error})")
                continue
            if isinstance(row, dict):
                yield place, row
            else:
                report.add(place, f"expected a JSON object, got {type(row).__name__}")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long its first bytes, one more than are allowed."""
    while line := file.readline(MAX_ROW_BYTES + 1):
        rest = line
        while len(rest) > MAX_ROW_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_ROW_BYTES + 1)
        yield line


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except pyarrow.ArrowInvalid as error:
        raise RunFailed(f"expected a Parquet file at data.path, got {path}, which cannot be read: {error}") from error


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import datasets
    except ImportError as error:
        raise RunFailed(
            "data.kind=hub needs the `datasets` package (got none): pip install 'capo-ray[hub]', "
            "or download the data and use data.kind=jsonl or parquet"
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunFailed(
            f"expected the data set {name!r} with a split {split!r} on the hub, got: {reason}; "
            "check name and network, or download it and use data.kind=jsonl or parquet"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{name}[{split}]:{number}", dict(row)
