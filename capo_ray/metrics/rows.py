"""JSON lines that carry an `update`: one row per update in `metrics.jsonl`, never a torn one after a restart.

Numbers that are not finite become null: JSON has no NaN, and a reader in another language would choke on the line.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capo_ray.protocols import RunFailed
from capo_ray.runs.files import replace_whole


class JsonlTracker:
    """The rows of a run (`protocols.Tracker`): `{"update", "unix_s", "room/quantity_unit": number or null, …}`.

    Figures logged twice for one update are merged into its row. With `resume_from` = v, rows of updates > v go first.
    """

    def __init__(self, path: Path, resume_from: int | None = None) -> None:
        rows = keep_rows(path, resume_from)
        self._path = path
        self._last: dict[str, Any] = rows[-1] if rows else {"update": -1}
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = os.fstat(self._fd).st_size
        self._start = self._end - len(to_line(self._last)) if rows else self._end

    def log(self, metrics: Mapping[str, float], *, update: int) -> None:
        """Append the row of `update`, or add to it when it is the last one."""
        last = self._last["update"]
        if update < last:
            raise ValueError(f"expected update >= {last}, the last one recorded, got {update}; resume cuts rows away")
        row = dict(self._last) if update == last else {"update": update, "unix_s": round(time.time(), 3)}
        if update != last:
            self._start = self._end
        row |= {name: to_plain(value) for name, value in metrics.items()}
        line = to_line(row)
        try:
            _write_at(self._fd, line, self._start)
        except OSError as error:
            # What stood there is put back: a shorter row, in blocks that the file still has, so it fits on a full disk.
            _write_at(self._fd, to_line(self._last) if update == last else b"", self._start)
            os.ftruncate(self._fd, self._end)
            raise RunFailed(
                f"{self._path} could not take the row of update {update}: {error.strerror or error}; make room or mend "
                f"the file system"
            ) from error
        self._end = self._start + len(line)
        os.ftruncate(self._fd, self._end)
        self._last = row

    def close(self) -> None:
        """Bring the rows to the disk."""
        os.fsync(self._fd)
        os.close(self._fd)


def _write_at(fd: int, content: bytes, start: int) -> None:
    """All of `content` from `start` on: a full disk may take a part of it first and refuse the rest."""
    view = memoryview(content)
    while view:
        written = os.pwrite(fd, view, start)
        view, start = view[written:], start + written


def to_plain(value: object) -> float | int | None:
    """A number as JSON has it: tensors and numpy scalars as floats, what is not finite as None."""
    if isinstance(value, int):
        return int(value)
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None


def to_line(row: Mapping[str, Any]) -> bytes:
    """One JSON line."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSONL file in order; a last line torn by a crash is left out, and so is a missing file."""
    if not path.is_file():
        return []
    *lines, torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not torn:
                break
            raise ValueError(
                f"{path} line {number} is not JSON ({error}); restore the file or remove the line"
            ) from error
    return rows


def keep_rows(path: Path, resume_from: int | None) -> list[dict[str, Any]]:
    """The rows of updates <= `resume_from` (None: all whole rows), after the file was replaced by exactly these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read_rows(path) if resume_from is None or row["update"] <= resume_from]
    content = b"".join(to_line(row) for row in rows)
    if path.is_file() and path.read_bytes() != content:
        replace_whole(path, content)
    return rows


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Replace `path` by `summary` as indented JSON, whole or not at all; numbers that are not finite become null."""
    text = json.dumps(_without_nan(summary), indent=2, ensure_ascii=False, allow_nan=False)
    replace_whole(path, (text + "\n").encode())


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
