"""Critiques already paid for, on disk: replay, another vote rule, a smaller k and resume cost no new calls.

    key = hash(question, reference, steps, rubric text, model revision, sampling)   row = (key, vote index)

Invariant: a row is written once and never changed, and holds only what a critic did say (readable or not), never a
time-out. Several processes may share the file (WAL); it must be on a local disk.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from capo_ray.types import Critique, Problem, Provenance

BUSY_S = 30.0
"""How long a write waits for another process's."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS critiques (
    key TEXT NOT NULL, vote_index INTEGER NOT NULL,
    flagged TEXT, overall INTEGER, text TEXT NOT NULL, reason TEXT NOT NULL,
    model TEXT NOT NULL, seed INTEGER, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL, PRIMARY KEY (key, vote_index)
) WITHOUT ROWID
"""


def request_key(
    problem: Problem, steps: Sequence[str], rubric_text: str, model: str, sampling: Mapping[str, object]
) -> str:
    """The content hash (64 hex digits) of everything that shapes a critic's answers to one response."""
    content = [problem.prompt, problem.solution, list(steps), rubric_text, model, dict(sampling)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class CritiqueStore:
    """Critiques by request and vote index; safe with threads and processes."""

    def __init__(self, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(str(path), timeout=BUSY_S, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(_SCHEMA)

    def read(self, key: str, num_votes: int) -> list[Critique]:
        """The critiques 0, 1, … of a request as far as they are held without a gap, at most `num_votes`."""
        with self._lock:
            rows = self._db.execute(
                "SELECT vote_index, flagged, overall, text, reason, model, seed, prompt_tokens, output_tokens, seconds "
                "FROM critiques WHERE key = ? AND vote_index < ? ORDER BY vote_index",
                (key, num_votes),
            ).fetchall()
        return [_to_critique(key, row) for place, row in enumerate(rows) if row[0] == place]

    def write(self, key: str, critiques: Sequence[Critique]) -> None:
        """Keep critiques under their vote index; where another process was first, its critique stays."""
        rows = [_to_row(key, critique) for critique in critiques if not critique.provenance.cached]
        if not rows:
            return
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR IGNORE INTO critiques VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM critiques").fetchone()[0])

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()


def _to_row(key: str, critique: Critique) -> tuple[object, ...]:
    flagged = None if critique.flagged is None else json.dumps(sorted(critique.flagged))
    overall = None if critique.overall is None else int(critique.overall)
    # Lone surrogates cannot be stored as UTF-8; they carry no verdict.
    text = critique.text.encode("utf-8", "replace").decode()
    p = critique.provenance
    return (
        key, p.vote_index, flagged, overall, text, critique.reason,
        p.model, p.seed, p.prompt_tokens, p.output_tokens, p.seconds,
    )  # fmt: skip


def _to_critique(key: str, row: tuple[object, ...]) -> Critique:
    index, flagged, overall, text, reason, model, seed, prompt_tokens, output_tokens, seconds = row
    return Critique(
        flagged=None if flagged is None else frozenset(json.loads(str(flagged))),
        overall=None if overall is None else bool(overall),
        text=str(text),
        reason=str(reason),
        provenance=Provenance(
            model=str(model),
            prompt_hash=key,
            vote_index=int(str(index)),
            seed=None if seed is None else int(str(seed)),
            cached=True,
            prompt_tokens=int(str(prompt_tokens)),
            output_tokens=int(str(output_tokens)),
            seconds=float(str(seconds)),
        ),
    )
