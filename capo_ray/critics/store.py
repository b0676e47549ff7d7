"""Critiques already paid for, on disk: replay, another vote rule, a smaller k and resume cost no new calls.

    key = hash(question, reference, steps, rubric text, model revision, sampling)   row = (key, vote index), checksum

Invariants
- A row is written once and never changed, and holds only what a critic did say (readable or not), never a time-out.
- A row whose content is not what was written is dropped and counted, and its vote is asked for again.
- One process holds the file, and another is refused (`StoreHeld`). Held so, SQLite's WAL needs no memory that is shared
  between processes, so that the file may lie on a network file system that has locks.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capo_ray.types import Critique, Problem, Provenance

HELD_S = 30.0
"""How long the file of another process is waited for: one that was killed may take a while to go."""
_COLUMNS = "vote_index, flagged, overall, text, reason, model, seed, prompt_tokens, output_tokens, seconds"
# Rows stand in the order of their writing: an insert touches the last page and a small index, not a random page.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS votes (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL, vote_index INTEGER NOT NULL,
    flagged TEXT, overall INTEGER, text TEXT NOT NULL, reason TEXT NOT NULL,
    model TEXT NOT NULL, seed INTEGER, prompt_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL, checksum INTEGER NOT NULL, UNIQUE (key, vote_index)
)
"""
Row = tuple[Any, ...]


class StoreHeld(RuntimeError):
    """Another process holds the file; the message is a sentence for the user."""


def request_key(
    problem: Problem, steps: Sequence[str], rubric_text: str, model: str, sampling: Mapping[str, object]
) -> str:
    """The content hash (64 hex digits) of everything that shapes a critic's answers to one response."""
    content = [problem.prompt, problem.solution, list(steps), rubric_text, model, dict(sampling)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class CritiqueStore:
    """Critiques by request and vote index, in a file that this process alone holds; safe with threads.

    Raises `StoreHeld` where another process holds the file for longer than `held_s`, `sqlite3.Error` and `OSError` as
    they come: `GuardedStore` is for those who must go on without.
    """

    def __init__(self, path: str | Path, held_s: float = HELD_S) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.num_damaged = 0
        self._lock = threading.Lock()
        self._db = _open_alone(str(path), held_s)
        try:
            self._db.execute(_SCHEMA)
            self._take_over_older()
        except BaseException:
            self._db.close()
            raise

    def read(self, key: str, num_votes: int) -> list[Critique]:
        """The critiques 0, 1, … of a request as far as they are held without a gap, at most `num_votes`."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT id, checksum, {_COLUMNS} FROM votes WHERE key = ? AND vote_index < ? ORDER BY vote_index",
                (_short(key), num_votes),
            ).fetchall()
            whole = [row[2:] for row in rows if row[1] == _checksum(_short(key), row[2:])]
            if len(whole) < len(rows):
                bad = [(row[0],) for row in rows if row[1] != _checksum(_short(key), row[2:])]
                self.num_damaged += len(bad)
                self._db.executemany("DELETE FROM votes WHERE id = ?", bad)
        return [_to_critique(key, row) for place, row in enumerate(whole) if row[0] == place]

    def write(self, key: str, critiques: Sequence[Critique]) -> None:
        """Keep critiques under their vote index; one that stands there already stays."""
        self.write_all({key: critiques})

    def write_all(self, votes: Mapping[str, Sequence[Critique]]) -> None:
        """As `write`, for several requests in one transaction; what came out of a store is not written again."""
        rows = [_to_row(_short(key), c) for key, said in votes.items() for c in said if not c.provenance.cached]
        if not rows:
            return
        with self._lock:
            self._insert(rows)

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM votes").fetchone()[0])

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._db.close()

    def _insert(self, rows: Sequence[Row]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(
                f"INSERT OR IGNORE INTO votes (key, {_COLUMNS}, checksum) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", rows
            )
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _take_over_older(self) -> None:
        """Bring the rows of a file of the first layout (long keys, no checksum) into this one's."""
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'critiques'").fetchone():
            return
        old = self._db.execute(f"SELECT key, {_COLUMNS} FROM critiques").fetchall()
        self._insert([_with_checksum((_short(str(row[0])), *row[1:])) for row in old])
        self._db.execute("DROP TABLE critiques")


def _open_alone(path: str, held_s: float) -> sqlite3.Connection:
    """The connection that holds the file until it is closed."""
    ends = time.monotonic() + held_s
    while True:
        db = sqlite3.connect(path, timeout=0.0, check_same_thread=False, isolation_level=None)
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")  # a damaged text must not hide the rows beside it
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("BEGIN IMMEDIATE")
            db.execute("COMMIT")
            return db
        except sqlite3.OperationalError as error:
            db.close()
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            if time.monotonic() >= ends:
                raise StoreHeld(
                    f"the critique store {path} is held by another process; wait for that run to end, or give this one "
                    f"another file (critic.store=FILE)"
                ) from None
        except BaseException:
            db.close()
            raise
        time.sleep(0.2)


def _short(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _checksum(key: bytes, row: Row) -> int:
    return zlib.crc32(repr((key, *row)).encode("utf-8", "replace"))


def _with_checksum(row: Row) -> Row:
    """A row of key and columns, its checksum last."""
    return (*row, _checksum(row[0], row[1:]))


def _to_row(key: bytes, critique: Critique) -> Row:
    flagged = None if critique.flagged is None else json.dumps(sorted(critique.flagged))
    overall = None if critique.overall is None else int(critique.overall)
    # Lone surrogates cannot be stored as UTF-8; they carry no verdict.
    text, reason = (part.encode("utf-8", "replace").decode() for part in (critique.text, critique.reason))
    p = critique.provenance
    return _with_checksum(
        (
            key, p.vote_index, flagged, overall, text, reason,
            p.model, p.seed, p.prompt_tokens, p.output_tokens, float(p.seconds),
        )
    )  # fmt: skip


def _to_critique(key: str, row: Row) -> Critique:
    index, flagged, overall, text, reason, model, seed, prompt_tokens, output_tokens, seconds = row
    return Critique(
        flagged=None if flagged is None else frozenset(json.loads(flagged)),
        overall=None if overall is None else bool(overall),
        text=text,
        reason=reason,
        provenance=Provenance(
            model=model,
            prompt_hash=key,
            vote_index=index,
            seed=seed,
            cached=True,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            seconds=seconds,
        ),
    )
