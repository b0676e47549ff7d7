r"""What happens to long responses whose tokens grow old: dropped as groups, masked by token, or waited for.

    python benchmarks/staleness.py [--updates 200] [--seeds 3] [--output FILE | --record]

The real slot buffer on a simulated clock. Groups of 8 responses of log-normal length (sigma), a token taking the same
time everywhere; a group is finished with its longest response and, where critics are asked, a critique later; the mean
time of a group is 1. An update takes `update`; weights swap in flight, so each token has the version held when it was
sampled. 16 groups a batch. Rules:
    drop    a group with any token older than max_age is dropped (what capo-ray did first)
    mask    tokens older than max_age have weight 0; a group is dropped when none is left (what it does now)
    hold    the learner waits before an update that would make a token of a group in production too old
    wait    mask, and the learner waits before an update that would make a group that is being judged too old as a whole

Columns: groups dropped; their mean response length over that of the trained ones; of the trained groups' tokens the
share masked and of their responses the share masked whole; the share of a response's tokens that is trained, on average
over the shortest and over the longest fifth of responses, and of these over the first and the last quarter; the mean
length of responses as trained (each counts by the share of it that is, as with loss.aggregation=sequence_mean) over
that of all sampled; updates and trained tokens in the mean time of a group, over those of `drop`; the learner's idle
share. Fails when a token older than max_age was trained.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.buffer import SlotBuffer, Taken, Ticket

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from records import record

from tests.clock import simulate

RESULTS = record("staleness.json")
GROUPS, SIBLINGS = 16, 8
RULES = ("drop", "mask", "hold", "wait")
MASKING = ("mask", "wait")


@dataclass(frozen=True)
class Setting:
    """One world; `slots` in batches."""

    sigma: float
    max_age: int
    slots: int
    update: float = 0.1
    critique: float = 0.0


GRID = [
    *(Setting(sigma, max_age, max_age + 1) for sigma in (0.3, 0.7, 1.2) for max_age in (0, 1, 2, 4)),
    *(Setting(0.7, 1, 2, update=update) for update in (0.3, 0.5, 0.7)),
    *(Setting(sigma, max_age, 2) for sigma in (0.7, 1.2) for max_age in (2, 4)),
    *(Setting(0.7, max_age, max_age + 1, critique=0.5) for max_age in (1, 2)),
    *(Setting(0.7, max_age, max_age + 1, critique=2.0) for max_age in (1, 2)),
]


@dataclass(frozen=True)
class Rolled:
    """A group: when it began, and the lengths of its responses in the time that they take."""

    start: float
    lengths: tuple[float, ...]


class Run:
    """Producers and a learner around one buffer."""

    def __init__(self, rule: str, setting: Setting, seed: int) -> None:
        self.rule, self.setting, self.rng = rule, setting, random.Random(seed)
        draws = random.Random(0)
        unit = statistics.fmean(max(self._draws(draws)) for _ in range(4000))
        self.median = 1 / unit
        self.swaps = [0.0]  # when the engines came to hold each version
        self.dropped: list[Rolled] = []
        self.trained: list[tuple[int, Rolled]] = []
        self.waited_for: dict[Ticket, int] = {}  # the version of what must not grow too old
        self.moved = asyncio.Event()
        slots = GROUPS * setting.slots
        self.buffer: SlotBuffer[Rolled] = SlotBuffer(slots, setting.max_age, lambda _, item: self.dropped.append(item))
        self.idle = 0.0

    async def run(self, updates: int) -> None:
        walks: set[asyncio.Task[None]] = set()
        producer = asyncio.create_task(self._produce(walks))
        clock = asyncio.get_running_loop().time
        for version in range(updates):
            asked = clock()
            taken = await self._take(version)
            self.idle += clock() - asked
            await asyncio.sleep(self.setting.update)
            self.swaps.append(clock())
            self.trained += [(version, t.item) for t in taken]
            self.buffer.release([t.ticket for t in taken])
        for task in (producer, *walks):
            task.cancel()

    async def _produce(self, walks: set[asyncio.Task[None]]) -> None:
        while True:
            ticket = await self.buffer.admit(len(self.swaps) - 1)
            walk = asyncio.create_task(self._walk(ticket))
            walks.add(walk)
            walk.add_done_callback(walks.discard)

    async def _walk(self, ticket: Ticket) -> None:
        start, oldest = asyncio.get_running_loop().time(), len(self.swaps) - 1
        if self.rule == "hold":
            self.waited_for[ticket] = oldest
        item = Rolled(start, tuple(self.median * x for x in self._draws(self.rng)))
        await asyncio.sleep(max(item.lengths))
        newest = len(self.swaps) - 1
        if self.rule == "wait":
            self.waited_for[ticket] = newest
        if self.setting.critique:
            await asyncio.sleep(self.setting.critique * self.rng.lognormvariate(0.0, 0.5))
        self.waited_for.pop(ticket, None)
        self.buffer.finish(ticket, item, newest if self.rule in MASKING else oldest)
        self.moved.set()

    async def _take(self, version: int) -> Sequence[Taken[Rolled]]:
        bound = version + 1 - self.setting.max_age
        await asyncio.sleep(0)
        while any(version < bound for version in self.waited_for.values()):
            self.moved.clear()
            await self.moved.wait()
        return await self.buffer.take(GROUPS, version, 1e9)

    def _draws(self, rng: random.Random) -> list[float]:
        return [rng.lognormvariate(0.0, self.setting.sigma) for _ in range(SIBLINGS)]

    def rows(self) -> list[tuple[float, float]]:
        """(length, part of it that is too old) of each response of a trained group, shortest first."""
        rows = []
        for version, group in self.trained:
            since = self.swaps[max(0, version - self.setting.max_age)]
            old = max(0.0, since - group.start) if self.rule in MASKING else 0.0
            rows += [(length, min(length, old)) for length in group.lengths]
        return sorted(rows)


def measure(rule: str, setting: Setting, seed: int, updates: int) -> dict[str, float | None]:
    """The figures of one run."""
    run = Run(rule, setting, seed)
    simulate(run.run(updates))
    rows, took = run.rows(), run.swaps[-1]
    tokens, masked = (sum(column) for column in zip(*rows, strict=True))
    fifth = len(rows) // 5
    shares = {"shortest": rows[:fifth], "longest": rows[-fifth:]}
    whole = [*run.dropped, *(g for _, g in run.trained)]
    trained_length = sum(length - old for length, old in rows) / sum(1 - old / length for length, old in rows)
    means = [[statistics.fmean(g.lengths) for g in groups] for groups in (run.dropped, [g for _, g in run.trained])]
    return {
        "dropped_frac": len(run.dropped) / (len(run.dropped) + len(run.trained)),
        "dropped_length_ratio": statistics.fmean(means[0]) / statistics.fmean(means[1]) if run.dropped else None,
        "masked_frac": masked / tokens,
        "masked_whole_frac": sum(old == length for length, old in rows) / len(rows),
        **{f"{name}_kept": statistics.fmean(1 - old / length for length, old in part) for name, part in shares.items()},
        "longest_first_quarter_kept": _quarter(shares["longest"], 0),
        "longest_last_quarter_kept": _quarter(shares["longest"], 3),
        "trained_length_ratio": trained_length / statistics.fmean(length for g in whole for length in g.lengths),
        "updates_per_time": updates / took,
        "tokens_per_time": (tokens - masked) / took,
        "idle_frac": run.idle / took,
        "oldest_trained": float(max(_oldest(run, version, group) for version, group in run.trained)),
    }


def _quarter(rows: Sequence[tuple[float, float]], which: int) -> float:
    """The share that is trained of that quarter of each response, on average."""
    return statistics.fmean(min(1.0, max(0.0, which + 1 - 4 * old / length)) for length, old in rows)


def _oldest(run: Run, version: int, group: Rolled) -> int:
    """The age of the oldest token that was trained."""
    age = version - (bisect_right(run.swaps, group.start) - 1)
    return min(age, run.setting.max_age) if run.rule in MASKING else age


def average(runs: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """The mean of each figure over seeds, where it is defined."""
    known = {name: [value for run in runs if (value := run[name]) is not None] for name in runs[0]}
    return {name: statistics.fmean(values) if values else None for name, values in known.items()}


def table(record: Sequence[dict[str, Any]]) -> str:
    """The figures as a table, `drop` of each setting being the measure of speed."""
    head = f"{'sigma':>5}{'age':>4}{'slots':>6}{'update':>7}{'critic':>7}  {'rule':<5}{'dropped':>8}{'length':>7}"
    tail = f"{'short':>7}{'long':>6}{'first':>7}{'last':>6}{'trained':>8}{'updates':>8}{'tokens':>7}{'idle':>6}"
    lines = [f"{head}{'masked':>7}{'whole':>7}{tail}"]
    for row in record:
        base = row["drop"]
        for rule in RULES:
            f = row[rule]
            ratio = "-" if f["dropped_length_ratio"] is None else f"{f['dropped_length_ratio']:.2f}"
            speed = [f[name] / base[name] for name in ("updates_per_time", "tokens_per_time")]
            world = (
                f"{row['sigma']:>5}{row['max_age']:>4}{row['slots'] * GROUPS:>6}{row['update']:>7}{row['critique']:>7}"
            )
            lines.append(
                f"{world}  {rule:<5}{f['dropped_frac']:>8.1%}{ratio:>7}"
                f"{f['masked_frac']:>7.1%}{f['masked_whole_frac']:>7.1%}"
                f"{f['shortest_kept']:>7.2f}{f['longest_kept']:>6.2f}{f['longest_first_quarter_kept']:>7.2f}"
                f"{f['longest_last_quarter_kept']:>6.2f}{f['trained_length_ratio']:>8.2f}{speed[0]:>8.2f}{speed[1]:>7.2f}"
                f"{f['idle_frac']:>6.0%}"
            )
    return "\n".join(lines)


def main() -> int:
    """0 when no trained token was older than the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    record = []
    for setting in GRID:
        figures = {r: average([measure(r, setting, s, args.updates) for s in range(args.seeds)]) for r in RULES}
        if any((figures[rule]["oldest_trained"] or 0) > setting.max_age for rule in RULES):
            raise SystemExit(f"a token older than the bound was trained: {setting} {figures}")
        record.append({**vars(setting), **figures})
    print(table(record))
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps({"updates": args.updates, "seeds": args.seeds, "rows": record}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
