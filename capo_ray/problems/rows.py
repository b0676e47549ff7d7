"""Rows of files and data sets as dictionaries, bad rows counted by place.

A bad row is reported as `file:line: reason` (its number in a table or array, from 1); more of them than the budget end
the run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from capo_ray.config.job import RowsConfig
from capo_ray.problems.files import FORMAT_NAMES, data_files, format_of, rows_of
from capo_ray.protocols import RunFailed

Kind = Literal["files", "jsonl", "csv", "parquet", "hub"]
Row = tuple[str, dict[str, Any]]


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


def read_rows(kind: Kind, path: str, split: str, report: RowReport, columns: Collection[str] = ()) -> Iterator[Row]:
    """(place, row) of each readable row, in file order; unreadable ones go to the report.

    `columns`: those that are wanted, where they are known; a table then gives no others.
    """
    if not path:
        raise RunFailed(
            f"data.kind={kind} needs data.path, a {'data-set name' if kind == 'hub' else 'file or folder'} (got none)"
        )
    if kind == "hub" and not _is_local(path):
        return _hub_rows(path, split)
    return _file_rows(kind, data_files(path, split), report, columns)


def reads_hub(data: RowsConfig) -> bool:
    """Whether the problems come from a hub, not from files here."""
    return data.kind == "hub" and not _is_local(data.path)


def _is_local(path: str) -> bool:
    return Path(path).expanduser().exists()


def _file_rows(kind: Kind, files: list[Path], report: RowReport, columns: Collection[str]) -> Iterator[Row]:
    for path in files:
        found = format_of(path)
        if kind not in ("files", "hub", found):
            cure = "files" if found == "arrow" else found
            raise RunFailed(
                f"expected a {FORMAT_NAMES[kind]} file at data.path, got {path}, which holds {FORMAT_NAMES[found]}; "
                f"set data.kind={cure}"
            )
        for place, row in rows_of(path, found, columns):
            if isinstance(row, str):
                report.add(place, row)
            else:
                yield place, row


def _hub_rows(name: str, split: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise RunFailed(
            "data.kind=hub needs the `datasets` package (got none): pip install 'capo-ray[hub]', "
            "or download the data and give its folder: data.kind=files data.path=FOLDER"
        ) from error
    dataset, _, part = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, part or None, split=split)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunFailed(
            f"expected the data set {name!r} with a split {split!r} on the hub, got: {reason}; "
            "check name and network, or download it and give its folder: data.kind=files data.path=FOLDER"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{name}[{split}]:{number}", dict(row)
