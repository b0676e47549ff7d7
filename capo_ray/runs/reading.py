"""A run's directory as whoever looks at it reads it: while it is written, half written, or of an older version.

    Run(path)   .settings  .summary  .status  .rows()  .heads()  .group(i)  .find(words)

Invariant: nothing is locked and nothing is written; a line that is not whole yet is left for the next look, and a file
that cannot be read is like one that is not there.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from capo_ray.runs.layout import (
    CONFIG_FILE,
    ERROR_FILE,
    HISTORY_FILE,
    LOCK_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
    TRANSCRIPTS_FILE,
)

_HEAD = b'{"head": '
_DECODER = json.JSONDecoder()
_HEAD_BYTES = 4096
"""More than the head of a line, unless its group has hundreds of responses."""
_BLOCK = 1 << 20


class NoRun(ValueError):
    """What was named is no directory of a run; one sentence."""


class Lines:
    """The whole lines of a file that grows, where they begin and end; each `refresh` looks at what is new.

    `rewrites_last`: the writer may put a longer line in the place of the last one.
    """

    def __init__(self, path: Path, *, rewrites_last: bool = False) -> None:
        self.path, self._rewrites_last = path, rewrites_last
        self.spans: list[tuple[int, int]] = []
        self._inode = -1

    def refresh(self) -> int:
        """How many of the spans are as they were; fewer than there were where the file was cut or replaced."""
        try:
            stat = self.path.stat()
            if stat.st_ino != self._inode or (self.spans and stat.st_size < self.spans[-1][1]):
                self.spans, self._inode = [], stat.st_ino
            if self._rewrites_last:
                del self.spans[-1:]
            kept = len(self.spans)
            with self.path.open("rb", buffering=0) as file:
                start = at = file.seek(self.spans[-1][1] if self.spans else 0)
                while block := file.read(_BLOCK):  # half the time of line after line
                    end = block.find(b"\n") + 1
                    while end:
                        self.spans.append((start, at + end))
                        start, end = at + end, block.find(b"\n", end) + 1
                    at += len(block)
        except OSError:
            self.spans, self._inode = [], -1
            return 0
        return kept

    def read(self, index: int) -> bytes:
        """One line."""
        start, end = self.spans[index]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def read_all(self, first: int = 0, most: int = sys.maxsize) -> Iterator[bytes]:
        """The lines from `first` on, at most so many bytes of each."""
        if first >= len(self.spans):
            return
        with self.path.open("rb") as file:
            for start, end in self.spans[first:]:
                file.seek(start)
                yield file.read(min(most, end - start))


@dataclass(frozen=True, slots=True)
class Head:
    """What a list of groups shows of one: `Run.group(index)` is the whole."""

    index: int
    facts: dict[str, Any]


class Run:
    """One run's directory; any thread may ask."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        if not self.path.is_dir() or not ((self.path / CONFIG_FILE).is_file() or (self.path / METRICS_FILE).is_file()):
            what = "a directory without either" if self.path.is_dir() else "no directory"
            raise NoRun(f"expected the directory of a run, with {CONFIG_FILE} or {METRICS_FILE}, got {path}: {what}")
        self._metrics = Lines(self.path / METRICS_FILE, rewrites_last=True)
        self._groups = Lines(self.path / TRANSCRIPTS_FILE)
        self._lock = threading.Lock()
        self._rows: list[dict[str, Any]] = []
        self._heads: list[Head] = []

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.name

    @property
    def settings(self) -> dict[str, Any]:
        """All keys, as `config.yaml` has them; {} where it cannot be read."""
        try:
            found = yaml.safe_load((self.path / CONFIG_FILE).read_bytes())
        except (OSError, yaml.YAMLError):
            return {}
        return found if isinstance(found, dict) else {}

    def section(self, name: str) -> dict[str, Any]:
        """One section of the settings; {} where there is none."""
        found = self.settings.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def sessions(self) -> list[tuple[int, float]]:
        """(update that it went on from, Unix time at which it began) of each; [] where the history cannot be read."""
        try:
            told = json.loads((self.path / HISTORY_FILE).read_bytes())["sessions"]
            return [(int(one["from_version"]), float(one["unix_s"])) for one in told]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    @property
    def summary(self) -> dict[str, Any] | None:
        """`summary.json`; None before the run's end."""
        try:
            found = json.loads((self.path / SUMMARY_FILE).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    @property
    def status(self) -> str:
        """`running`, `ended`, `stopped early`, `failed` or `broken off` (its driver is gone without a word)."""
        if _held(self.path / LOCK_FILE):
            return "running"
        error, summary = self.path / ERROR_FILE, self.path / SUMMARY_FILE
        if error.is_file() and not (summary.is_file() and summary.stat().st_mtime > error.stat().st_mtime):
            return "failed"
        told = self.summary
        if told is None:
            return "broken off"
        return "stopped early" if told.get("stopped_early") else "ended"

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl` so far, in order of updates; the last one may still gain figures."""
        with self._lock:
            del self._rows[self._metrics.refresh() :]
            for raw in self._metrics.read_all(len(self._rows)):
                row = _to_object(raw) or {}
                # A row's own copies of its names would take more room than its numbers.
                self._rows.append({sys.intern(name): value for name, value in row.items() if _is_figure(value)})
            return [row for row in self._rows if isinstance(row.get("update"), int)]

    def heads(self) -> Sequence[Head]:
        """What is known of each group in the transcripts, without reading their texts."""
        with self._lock:
            del self._heads[self._groups.refresh() :]
            for raw in self._groups.read_all(len(self._heads), _HEAD_BYTES):
                self._heads.append(Head(len(self._heads), _head_of(raw)))
            return list(self._heads)

    def group(self, index: int) -> dict[str, Any]:
        """One group's line; `IndexError` where there is none, {} where it cannot be read."""
        if not 0 <= index < len(self.heads()):
            raise IndexError(index)
        return _to_object(self._groups.read(index)) or {}

    def group_text(self, index: int) -> str:
        """The line as it stands, for `capo-ray credit`'s reader."""
        if not 0 <= index < len(self.heads()):
            raise IndexError(index)
        return self._groups.read(index).decode("utf-8", "replace")

    def find(self, words: str, most: int = 1000) -> list[int]:
        """The groups in whose question or responses all of the words stand, in any case."""
        wanted = [re.compile(re.escape(json.dumps(w)[1:-1].encode()), re.IGNORECASE) for w in words.split()[:8]]
        if not wanted or not self.heads():
            return []
        found = []
        for index, raw in enumerate(self._groups.read_all()):
            if all(word.search(raw) for word in wanted) and _speaks(_to_object(raw), words.casefold().split()):
                found.append(index)
                if len(found) == most:
                    break
        return found


def run_id_of(path: Path) -> str:
    """The id of the run in a directory, which no other has, whatever its name; empty where its history has none."""
    try:
        return str(json.loads((path / HISTORY_FILE).read_bytes()).get("run_id", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _speaks(line: dict[str, Any] | None, words: list[str]) -> bool:
    """Whether question and texts hold the words, not only a field's name or a critique."""
    if line is None:
        return False
    texts = [line.get("question"), *(r.get("text") for r in line.get("responses", []) if isinstance(r, dict))]
    whole = "\n".join(text for text in texts if isinstance(text, str)).casefold()
    return all(word in whole for word in words)


def _head_of(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(_HEAD):
        return {}
    try:
        found, _ = _DECODER.raw_decode(raw[len(_HEAD) :].decode("utf-8", "ignore"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_figure(value: object) -> bool:
    """Whether it is what a row holds; anything else was put there by another hand."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _to_object(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _held(path: Path) -> bool:
    """Whether a driver holds the run, by what it wrote into its lock: to try the lock could keep a driver out."""
    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError):
        return False
    if len(words) != 4 or not words[1].isdigit():
        return False
    if words[3] != socket.gethostname():
        return True
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
