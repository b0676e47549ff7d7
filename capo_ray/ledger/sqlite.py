"""The ledger on SQLite: one row per trajectory, one transaction per call, safe against kill -9 of the process.

Write-ahead log with synchronous=NORMAL: a commit that returned outlives the process; only a power cut may take the
last commits, and then whole ones. `trainings` is written beside the state and never consulted by the move check, so
that `trained_twice` would see a double even if the check were wrong.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from capo_ray.ledger.balance import OPEN, STATES, Balance, balance_of, count_trained_twice
from capo_ray.ledger.digest import ENDED, find_damage, find_torn, prepare, seal, seal_dropped
from capo_ray.protocols import RunFailed
from capo_ray.types import TrajectoryKey
from capo_ray.work import Work

SOURCES: dict[str, tuple[str, ...]] = {
    "generated": (),
    "verified": ("generated",),
    "critiqued": ("verified",),
    "credited": ("verified", "critiqued"),
    "trained": ("credited",),
    "dropped": OPEN,
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS trajectories (
  run TEXT, problem TEXT, grp INTEGER, sample INTEGER, attempt INTEGER,
  state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', trained_in INTEGER, num_valid INTEGER, num_votes INTEGER,
  num_masked INTEGER, digest INTEGER,
  admitted_s REAL, generated_s REAL, verified_s REAL, critiqued_s REAL, credited_s REAL, trained_s REAL, dropped_s REAL,
  PRIMARY KEY (run, problem, grp, sample, attempt)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trainings (
  run TEXT, problem TEXT, grp INTEGER, sample INTEGER, attempt INTEGER, trained_in INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS works (
  run TEXT, grp INTEGER, errand TEXT NOT NULL, tier TEXT NOT NULL, actor INTEGER NOT NULL, began_s REAL, ended_s REAL
);
"""
BIRTH = "generated"
_MEND = "look at its disk, put the file back, or start a new run"
_KEY = "run = ? AND problem = ? AND grp = ? AND sample = ? AND attempt = ?"


class BadMove(RuntimeError):
    """A move that the graph does not have; the message names the trajectory, its state and the state asked for."""


class LedgerLost(RunFailed):
    """The ledger's file is gone, damaged or cannot be written; the message names it."""


@dataclass(frozen=True, slots=True)
class Rewound:
    """How many trajectories a resume took back: trained after the checkpoint, and open when the run ended."""

    rolled_back: int
    interrupted: int


class SqliteLedger:
    """The durable account of one run (`protocols.Ledger`); any thread may call it."""

    def __init__(self, path: Path, run: str) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._in_words():
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            prepare(self._db)
        self._file = _identity(path)

    def record(
        self,
        keys: Sequence[TrajectoryKey],
        state: str,
        *,
        reason: str = "",
        update: int | None = None,
        votes: Sequence[tuple[int, int]] | None = None,
        masked: Sequence[int] | None = None,
    ) -> None:
        """Move trajectories to `state` in one durable transaction: all of them, or none and `BadMove`.

        `dropped` needs a reason, `trained` the update; `votes[i]` is (valid, asked) critiques of `keys[i]`, and
        `masked[i]` counts its tokens that were too old to be trained.
        """
        _check_arguments(state, reason, update, len(keys), votes, masked)
        if not keys:
            return
        rows = [(self._run, key.problem, key.group, key.sample, key.attempt) for key in keys]
        with self._transaction() as db:
            self._move(db, rows, state, reason, update)
            if votes is not None:
                pairs = [(*vote, *row) for vote, row in zip(votes, rows, strict=True)]
                db.executemany(f"UPDATE trajectories SET num_valid = ?, num_votes = ? WHERE {_KEY}", pairs)
            if masked is not None:
                counted = [(n, *row) for n, row in zip(masked, rows, strict=True)]
                db.executemany(f"UPDATE trajectories SET num_masked = ? WHERE {_KEY}", counted)
            if state in ENDED:
                seal(db, rows)

    def note(self, works: Sequence[Work]) -> None:
        """As `Logbook.note`: no row of the account, so none has a digest."""
        rows = [(self._run, w.group, w.errand, w.tier, w.actor, w.began_s, w.ended_s) for w in works]
        if rows:
            with self._transaction() as db:
                db.executemany("INSERT INTO works VALUES (?,?,?,?,?,?,?)", rows)

    def check(self) -> None:
        """Nothing, if the file is the one that was opened and SQLite finds it whole; else raises `LedgerLost`.

        It reads the whole file, on a connection of its own: rows may be written meanwhile.
        """
        self._require_none(find_torn)

    def _require_none(self, find: Callable[[sqlite3.Connection], list[str] | None]) -> None:
        """Raise `LedgerLost` for damage that is found in the file as it lies on the disk."""
        self._require_file()
        with self._in_words():
            db = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)
            try:
                found = find(db)
            finally:
                db.close()
        if found:
            raise LedgerLost(f"the ledger {self._path} is damaged ({'; '.join(found[:3])}); {_MEND}")

    def balance(self) -> Balance:
        """The account of this run as it stands."""
        with self._lock, self._in_words():
            return balance_of(self._db, self._run)

    def trained_twice(self) -> int:
        """Responses (problem, group, sample) that entered more than one update, over all their attempts."""
        with self._lock, self._in_words():
            return count_trained_twice(self._db, self._run)

    def close_open(self, reason: str) -> int:
        """Drop every open trajectory with `reason`; returns how many there were."""
        _check_arguments("dropped", reason, None, 0, None, None)
        with self._transaction() as db:
            return self._drop_open(db, reason)

    def rewind(self, update: int) -> Rewound:
        """Go back to the checkpoint of version `update`: what was trained after it and what is open is dropped.

        It raises `LedgerLost` where the file is not as the last driver left it: nothing is moved over damage.
        """
        self._require_none(find_damage)
        with self._transaction() as db:
            now = time.time()
            rolled_back = db.execute(
                "UPDATE trajectories SET state = 'dropped', reason = 'rolled_back', trained_in = NULL, dropped_s = ? "
                "WHERE run = ? AND state = 'trained' AND trained_in > ?",
                (now, self._run, update),
            ).rowcount
            seal_dropped(db, self._run, now)
            db.execute("DELETE FROM trainings WHERE run = ? AND trained_in > ?", (self._run, update))
            return Rewound(rolled_back, self._drop_open(db, "interrupted"))

    def next_group(self) -> int:
        """The smallest group number above all that this run has used (0 in a new one)."""
        with self._lock, self._in_words():
            row = self._db.execute("SELECT MAX(grp) FROM trajectories WHERE run = ?", (self._run,)).fetchone()
        return 0 if row[0] is None else row[0] + 1

    def close(self) -> None:
        """Fold the write-ahead log into the file and let go of it; a second call does nothing."""
        with self._lock, self._in_words():
            self._db.close()

    def _move(
        self,
        db: sqlite3.Connection,
        rows: list[tuple[str, str, int, int, int]],
        state: str,
        reason: str,
        update: int | None,
    ) -> None:
        now = time.time()
        if state == BIRTH:
            sql = (
                "INSERT INTO trajectories (run, problem, grp, sample, attempt, state, generated_s) "
                "VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING"
            )
            moved = db.executemany(sql, [(*row, state, now) for row in rows]).rowcount
        else:
            sql = (
                f"UPDATE trajectories SET state = ?, reason = ?, trained_in = ?, {state}_s = ? "
                f"WHERE {_KEY} AND state IN {_sql_list(SOURCES[state])}"
            )
            moved = db.executemany(sql, [(state, reason, update, now, *row) for row in rows]).rowcount
        if moved != len(rows):
            db.execute("ROLLBACK")
            raise BadMove(self._explain(db, rows, state))
        if state == "trained":
            db.executemany("INSERT INTO trainings VALUES (?,?,?,?,?,?)", [(*row, update) for row in rows])

    def _explain(self, db: sqlite3.Connection, rows: list[tuple[str, str, int, int, int]], state: str) -> str:
        """The sentence about the first row that may not move to `state` (the rejected transaction is undone)."""
        seen: set[tuple[str, str, int, int, int]] = set()
        for row in rows:
            name = "/".join(map(str, row[1:]))
            found = db.execute(f"SELECT state FROM trajectories WHERE {_KEY}", row).fetchone()
            allowed = " or ".join(SOURCES[state]) or "unknown"
            if row in seen:
                return f"trajectory {name} is named twice in one move to {state}; name it once"
            if (found and found[0] not in SOURCES[state]) or (not found and state != BIRTH):
                current = found[0] if found else "unknown to the ledger"
                return f"trajectory {name} moves to {state} only from {allowed}, but is {current}"
            seen.add(row)
        return f"a move to {state} was refused for a reason unknown; {len(rows)} trajectories are as before"

    def _drop_open(self, db: sqlite3.Connection, reason: str) -> int:
        now = time.time()
        num_dropped = db.execute(
            "UPDATE trajectories SET state = 'dropped', reason = ?, dropped_s = ? "
            f"WHERE run = ? AND state IN {_sql_list(OPEN)}",
            (reason, now, self._run),
        ).rowcount
        seal_dropped(db, self._run, now)
        return num_dropped

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._in_words():
            self._require_file()
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """An error of SQLite becomes one sentence that names the file."""
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerLost(f"the ledger {self._path} cannot be used ({error}); {_MEND}") from error

    def _require_file(self) -> None:
        """The file that was opened still has its name: SQLite would go on writing into one that was deleted."""
        if _identity(self._path) != self._file:
            raise LedgerLost(f"the ledger {self._path} was removed or replaced while its run went on; {_MEND}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_arguments(
    state: str,
    reason: str,
    update: int | None,
    num_keys: int,
    votes: Sequence[tuple[int, int]] | None,
    masked: Sequence[int] | None,
) -> None:
    if state not in SOURCES:
        raise BadMove(f"state must be one of {', '.join(STATES)} (got {state!r})")
    if state == "dropped" and not reason:
        raise BadMove("a dropped trajectory needs a reason (got none)")
    if (state == "trained") != (update is not None):
        raise BadMove(f"`update` goes with state trained and no other (got state={state}, update={update})")
    for name, each in (("votes", votes), ("masked", masked)):
        if each is not None and len(each) != num_keys:
            raise BadMove(f"{name} must have one entry per trajectory (got {len(each)} for {num_keys})")


def _sql_list(states: Sequence[str]) -> str:
    return "(" + ", ".join(f"'{state}'" for state in states) + ")"
