"""The lives of groups as the ledger timed them, read without writing, also while their run goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capo_ray.ledger.balance import OPEN
from capo_ray.ledger.reading import reading
from capo_ray.work import Work

MOST_WORKS = 6000
STAGES = ("generated", "verified", "critiqued", "credited", "trained", "dropped")


@dataclass(frozen=True, slots=True)
class Life:
    """One group: when its last trajectory came to each state (seconds since 1970), by state."""

    group: int
    problem: str
    reason: str
    """Why it was dropped; empty where it was not."""
    times: dict[str, float]


@dataclass(frozen=True, slots=True)
class Lives:
    """Groups trained in updates around `update`, those dropped in the same time, and the count of all trajectories."""

    update: int
    groups: tuple[Life, ...]
    counts: dict[str, int]
    reasons: dict[str, int]
    works: tuple[Work, ...] = ()
    """Who worked in the time of these groups, for them or for others, by its beginning; () of an older run."""

    @property
    def balanced(self) -> bool:
        """Whether every trajectory is trained or dropped."""
        return not any(self.counts.get(state) for state in OPEN)


def read_lives(path: Path, update: int | None, *, around: int = 2, most: int = 400) -> Lives:
    """The lives around an update (None: the newest) and at most `MOST_WORKS` works meanwhile; empty without ledger."""
    if not path.is_file():
        return Lives(update or 0, (), {}, {})
    with reading(path) as db:
        told = db.execute("SELECT state, reason, COUNT(*) FROM trajectories GROUP BY state, reason").fetchall()
        newest = db.execute("SELECT MAX(trained_in) FROM trajectories").fetchone()[0] or 0
        update = newest if update is None else update
        groups = _lives(db, update - around, update + around, most)
        works = _works(db, [life.group for life in groups])
    counts: dict[str, int] = {}
    for state, _, count in told:
        counts[state] = counts.get(state, 0) + count
    return Lives(update, groups, counts, {reason: count for _, reason, count in told if reason}, works)


def _lives(db: sqlite3.Connection, first: int, last: int, most: int) -> tuple[Life, ...]:
    span = db.execute(
        "SELECT MIN(generated_s), MAX(trained_s) FROM trajectories WHERE trained_in BETWEEN ? AND ?", (first, last)
    ).fetchone()
    columns = ", ".join(f"MAX({state}_s)" for state in STAGES)
    rows = db.execute(
        f"SELECT grp, problem, MAX(reason), {columns} FROM trajectories "
        "WHERE trained_in BETWEEN ? AND ? OR dropped_s BETWEEN ? AND ? "
        "GROUP BY grp, problem, attempt ORDER BY MIN(generated_s) LIMIT ?",
        (first, last, span[0] or 0.0, span[1] or 0.0, most),
    ).fetchall()
    lives = []
    for group, problem, reason, *times in rows:
        known = {state: time for state, time in zip(STAGES, times, strict=True) if time}
        lives.append(Life(group, problem, reason or "", known))
    return tuple(lives)


def _works(db: sqlite3.Connection, groups: Sequence[int]) -> tuple[Work, ...]:
    """All works between the first for one of the groups and the last."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'works'").fetchone():
        return ()
    places = ",".join("?" * len(groups))
    first, last = db.execute(
        f"SELECT MIN(began_s), MAX(ended_s) FROM works WHERE grp IN ({places})", tuple(groups)
    ).fetchone()
    rows = db.execute(
        "SELECT tier, actor, began_s, ended_s, grp, errand FROM works WHERE ended_s >= ? AND began_s <= ? "
        "ORDER BY began_s LIMIT ?",
        (first, last, MOST_WORKS),
    ).fetchall()
    return tuple(Work(*row) for row in rows)
