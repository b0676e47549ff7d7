"""A digest beside each row: a byte that flips in the file is found even where the account still balances.

    trained, dropped: UPDATE ... -> seal(those rows)       read: every row against its digest, and with its training

A row is sealed in the transaction that ends it, by a function of ours that SQLite calls on the row as it stands; an
open one has no digest, for a resume drops it whatever it says.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable

KEY = ("run", "problem", "grp", "sample", "attempt")
# `admitted_s` is empty: of a state that is no more, but the digests of earlier ledgers count it.
_STATES_AT = ("admitted_s", "generated_s", "verified_s", "critiqued_s", "credited_s", "trained_s", "dropped_s")
_COLUMNS = ", ".join((*KEY, "state", "reason", "trained_in", "num_valid", "num_votes", "num_masked", *_STATES_AT))
_SEAL = f"UPDATE trajectories SET digest = row_digest({_COLUMNS}) WHERE "
ENDED = ("trained", "dropped")
_SEAL_ROW = _SEAL + " AND ".join(f"{name} = ?" for name in KEY)
ADDED = ("num_masked", "digest")
"""Columns that a ledger of an older version lacks."""


def row_digest(*values: object) -> int:
    """The checksum of a row's values in the order of its columns."""
    return zlib.crc32(repr(values).encode("utf-8", "surrogateescape"))


def prepare(db: sqlite3.Connection) -> None:
    """Lets `db` seal rows; a ledger that began without some column gets it, its ended rows sealed as they are."""
    db.create_function("row_digest", -1, row_digest, deterministic=True)
    if missing := [name for name in ADDED if name not in columns_of(db)]:
        db.execute("BEGIN IMMEDIATE")
        for name in missing:
            db.execute(f"ALTER TABLE trajectories ADD COLUMN {name} INTEGER")
        db.execute(_SEAL + f"state IN {ENDED}")
        db.execute("COMMIT")


def columns_of(db: sqlite3.Connection) -> set[str]:
    """The names of a trajectory's columns."""
    return {row[1] for row in db.execute("PRAGMA table_info(trajectories)").fetchall()}


def seal(db: sqlite3.Connection, rows: Iterable[tuple[str, str, int, int, int]]) -> None:
    """Seal the rows with these keys, which have ended."""
    db.executemany(_SEAL_ROW, rows)


def seal_dropped(db: sqlite3.Connection, run: str, dropped_s: float) -> None:
    """Seal the rows of a run that were dropped at that time."""
    db.execute(_SEAL + "run = ? AND dropped_s = ?", (run, dropped_s))


def find_torn(db: sqlite3.Connection) -> list[str]:
    """What SQLite itself finds amiss in its pages; fast, without the digests."""
    return [row[0] for row in db.execute("PRAGMA quick_check(5)").fetchall() if row[0] != "ok"]


def find_damage(db: sqlite3.Connection) -> list[str] | None:
    """What does not stand as it was written, a phrase for each row; None for a ledger of before there were digests."""
    if not set(ADDED) <= columns_of(db):
        return None
    before, db.text_factory = db.text_factory, lambda raw: raw.decode("utf-8", "surrogateescape")
    try:
        found = find_torn(db)
        trained = []
        for *values, digest in db.execute(f"SELECT {_COLUMNS}, digest FROM trajectories"):
            if digest != (row_digest(*values) if values[5] in ENDED else None):
                found.append(f"trajectory {_name(values)}")
            elif values[5] == "trained":
                trained.append((*values[: len(KEY)], values[7]))
        trainings = db.execute(f"SELECT {', '.join(KEY)}, trained_in FROM trainings").fetchall()
        found += [f"training of {_name(row)} in update {row[5]}" for row in set(trained) ^ set(trainings)]
        return found
    finally:
        db.text_factory = before


def _name(values: Iterable[object]) -> str:
    """A row as people name it: problem/group/sample/attempt."""
    return ascii("/".join(map(str, list(values)[1 : len(KEY)])))[1:-1]
