"""The account of a ledger: how many trajectories are in which state, and whether all are accounted for."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from capo_ray.ledger.digest import columns_of, find_damage
from capo_ray.ledger.reading import reading

STATES = ("generated", "verified", "critiqued", "credited", "trained", "dropped")
OPEN = STATES[:4]


@dataclass(frozen=True, slots=True)
class Balance:
    """The account of a run: `counts` per state, `reasons` of the dropped, `open` ones, and whether all is accounted.

    `votes` counts the trajectories that passed `critiqued` by "valid/asked" critiques; `masked_tokens` are those of the
    trained ones that were too old to be.
    """

    counts: Mapping[str, int]
    votes: Mapping[str, int]
    reasons: Mapping[str, int]
    balanced: bool
    open: int
    trained_twice: int
    updates: int
    masked_tokens: int
    damaged: Sequence[str] | None = None
    """Rows that do not stand as they were written, if it was looked; None of a ledger without digests."""

    def to_dict(self) -> dict[str, object]:
        """The same as plain JSON types, with the total number of trajectories."""
        return {**asdict(self), "total": sum(self.counts.values())}


def read_balance(path: Path) -> Balance:
    """The account of everything in a ledger file, read without writing, also while its run is going on."""
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a ledger at {path}, found none; give the directory of a run that was started"
        )
    with reading(path) as db:
        balance, damaged = balance_of(db, None), find_damage(db)
        return replace(balance, damaged=damaged, balanced=balance.balanced and not damaged)


def _of_run(run: str | None) -> tuple[str, tuple[str, ...]]:
    """The WHERE clause for one run, or for all of them where `run` is None."""
    return ("WHERE 1", ()) if run is None else ("WHERE run = ?", (run,))


def _count_states(db: sqlite3.Connection, run: str | None) -> dict[str, int]:
    where, bound = _of_run(run)
    found = dict(db.execute(f"SELECT state, COUNT(*) FROM trajectories {where} GROUP BY state", bound).fetchall())
    return {state: found.get(state, 0) for state in STATES}


def count_trained_twice(db: sqlite3.Connection, run: str | None) -> int:
    where, bound = _of_run(run)
    doubles = f"SELECT 1 FROM trainings {where} GROUP BY run, problem, grp, sample HAVING COUNT(*) > 1"
    return int(db.execute(f"SELECT COUNT(*) FROM ({doubles})", bound).fetchone()[0])


def _count_votes(db: sqlite3.Connection, run: str | None) -> dict[str, int]:
    """Trajectories by "valid/asked" critiques, those with the most first."""
    where, bound = _of_run(run)
    rows = db.execute(
        f"SELECT num_valid, num_votes, COUNT(*) FROM trajectories {where} AND num_votes IS NOT NULL "
        "GROUP BY num_votes, num_valid ORDER BY num_votes DESC, num_valid DESC",
        bound,
    )
    return {f"{valid}/{asked}": count for valid, asked, count in rows.fetchall()}


def _count_masked(db: sqlite3.Connection, run: str | None) -> int:
    """Tokens of the trained trajectories that were too old; a ledger of before they were counted has none."""
    where, bound = _of_run(run)
    if "num_masked" not in columns_of(db):
        return 0
    query = f"SELECT TOTAL(num_masked) FROM trajectories {where} AND state = 'trained'"
    return int(db.execute(query, bound).fetchone()[0])


def balance_of(db: sqlite3.Connection, run: str | None) -> Balance:
    """The account, from one snapshot.

    Balanced: none open, none trained twice, as many trainings as trained trajectories, a reason for every drop.
    """
    where, bound = _of_run(run)
    db.execute("BEGIN")
    try:
        counts = _count_states(db, run)
        votes = _count_votes(db, run)
        masked = _count_masked(db, run)
        twice = count_trained_twice(db, run)
        dropped = f"FROM trajectories {where} AND state = 'dropped' GROUP BY reason ORDER BY 2 DESC"
        reasons = dict(db.execute(f"SELECT reason, COUNT(*) {dropped}", bound).fetchall())
        trainings, updates = db.execute(
            f"SELECT COUNT(*), COUNT(DISTINCT trained_in) FROM trainings {where}", bound
        ).fetchone()
    finally:
        db.execute("ROLLBACK")
    num_open = sum(counts[state] for state in OPEN)
    balanced = num_open == 0 and twice == 0 and trainings == counts["trained"] and "" not in reasons
    return Balance(counts, votes, reasons, balanced, num_open, twice, updates, masked)
