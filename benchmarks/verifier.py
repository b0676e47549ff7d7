r"""B9: verified pairs per second, G=16 with 40% distinct answers, against math-verify called naively.

    python benchmarks/verifier.py [--pairs 10000] [--repeats 5] [--naive 10000] [--stream 50000] [--processes 2]

The pairs come from GSM8K and MATH-500 (half of the groups each), other ones in every repeat; a response is the worked
solution with its final answer replaced. Of 16 siblings some are right (some in another spelling), the others give one
of a few wrong answers: shifted numbers, changed digits, or the answers of other problems of the same set.
Arms, interleaved in every repeat, each with warm children and empty caches:
    naive     one process, `verify(parse(reference), parse(response))` on every response, time-outs off
    pool      `VerifierPool` on the same pairs
    stream    `VerifierPool` on more pairs, so that a limit of one second is not longer than the whole arm
    hostile   the same pairs with 1% of the responses replaced by random hostile ones of the kinds of
              `hostile_verifier.py`; "sly": a tenth of them of kinds made to pass the refusals
    bare      a quarter of `pool` with 1% hostile and no refusals; "alone": nor the lane for slow pairs
A loss is 1 - pairs/s with / pairs/s without hostile ones, until the last verdict of all is there. Fails when a verdict
differs between arms, but for the differences decided on purpose, which are listed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from records import record

import capo_ray.verifiers.pool as pool_module
from capo_ray import answers
from capo_ray.config.sections import VerifierConfig
from capo_ray.verifiers import VerifierPool
from capo_ray.verifiers.jobs import Job, Limit

sys.path.insert(0, str(Path(__file__).parent))
from hostile_verifier import make_hostile
from verifier_pairs import GROUP, Pairs, make_pairs

LOSSES = {
    "hostile": "all layers (goal <= 10%)",
    "sly": "  a tenth of them sly",
    "bare": "no refusals (a short batch)",
    "alone": "  and no lane for slow pairs",
}


def run_naive(pairs: Pairs) -> tuple[float, float, list[int]]:
    """Wall and processor seconds, and verdicts, of the loop one writes first."""
    import math_verify

    verdicts = []
    start, cpu = time.perf_counter(), time.process_time()
    for reference, response in pairs:
        gold = math_verify.parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
        found = math_verify.parse(response, parsing_timeout=None)
        verdicts.append(int(math_verify.verify(gold, found, timeout_seconds=None)))
    return time.perf_counter() - start, time.process_time() - cpu, verdicts


async def _drive(pool: VerifierPool, groups: list[Pairs]) -> list[list[int | None]]:
    gate = asyncio.Semaphore(32)

    async def one(group: Pairs) -> list[int | None]:
        async with gate:
            return [v.reward for v in await pool.verify(group[0][0], [response for _, response in group])]

    return list(await asyncio.gather(*(one(group) for group in groups)))


@dataclass
class Run:
    """Wall and processor seconds, verdicts and figures of one arm."""

    wall_s: float
    cpu_s: float
    verdicts: list[int | None]
    stats: dict[str, float]

    def per_s(self) -> float:
        return len(self.verdicts) / self.wall_s


def run_pool(groups: list[Pairs], processes: int, refusals: bool = True, slow_lane: bool = True) -> Run:
    """One arm; without `refusals` or `slow_lane` a layer of the defence is off."""
    refusal = answers.refusal if refusals else (lambda *_: None)
    quick_s = pool_module.QUICK_CPU_S if slow_lane else 1e9
    config = VerifierConfig(num_processes=processes, deadline_s=600)
    with patch.object(answers, "refusal", refusal), patch.object(pool_module, "QUICK_CPU_S", quick_s):  # noqa: SIM117
        with VerifierPool(config) as pool:
            if not slow_lane:
                for lane in pool._lanes:
                    lane._limit, lane._suspects = Limit(config.timeout_s), None
            asyncio.run(_warm(pool, processes, slow_lane))
            for cached in (answers.fast_equal, answers.normalise):
                cached.cache_clear()
            start, cpu = time.perf_counter(), _cpu_s(pool)
            verdicts = asyncio.run(_drive(pool, groups))
            wall_s, cpu_s = time.perf_counter() - start, _cpu_s(pool) - cpu
            return Run(wall_s, cpu_s, [reward for group in verdicts for reward in group], pool.stats())


async def _warm(pool: VerifierPool, processes: int, slow_lane: bool) -> None:
    """Have every child started before the clock runs."""
    job = Job("x+1", "1+x")
    if slow_lane:
        pool._hold_apart(job)
    await _gather([pool.verify("y+1", [f"\\boxed{{|y|-{i}}}" for i in range(8 * processes)]) for _ in range(2)])
    if slow_lane:
        await asyncio.wrap_future(job.future)


def _cpu_s(pool: VerifierPool) -> float:
    """Processor seconds of this process and of the checkers, those killed on the way included."""
    return time.process_time() + pool.stats()["verifier/cpu_s_total"]


async def _gather(calls: list[Any]) -> None:
    await asyncio.gather(*calls)


def decided(reference: str, response: str) -> str | None:
    """Why a difference from the library is meant: the house rule at work, or None."""
    found = answers.extract_answer(response) or ""
    a, b = answers.normalise(reference), answers.normalise(found)
    if answers.decide(a, b) is not None:
        return "house rule"
    return "percent" if "%" in a + b else None


def add_hostile(groups: list[Pairs], rng: random.Random, sly_share: float) -> list[Pairs]:
    """The same groups with 1% of the responses replaced by hostile ones."""
    return [[(a, make_hostile(rng, sly_share) if rng.random() < 0.01 else r) for a, r in group] for group in groups]


def spoilt(clean: list[Pairs], hostile: list[Pairs], first: Run, second: Run) -> int:
    """How many verdicts differ on pairs that two arms share, or call a hostile answer right where the library does not.

    It may be right: `x^9-3=0` equals the reference 0, since math-verify takes the right side of an equation.
    """
    count = 0
    rows = zip(_flat(clean), _flat(hostile), first.verdicts, second.verdicts, strict=True)
    for pair, other, x, y in rows:
        if pair == other:
            count += x is not None and y is not None and x != y
        elif y == 1:
            reference, given = (answers.normalise(text or "") for text in (other[0], answers.extract_answer(other[1])))
            count += not answers.library_equal(reference, given)
    return count


def _flat(groups: list[Pairs]) -> Pairs:
    return [pair for group in groups for pair in group]


def one_repeat(args: argparse.Namespace, repeat: int) -> tuple[dict[str, float], list[list[object]]]:
    """The figures of every arm, and each difference between `naive` and `pool`."""
    seed = args.seed + 1000 * repeat
    rng = random.Random(seed + 1)
    groups = make_pairs(args.data, args.pairs, seed)
    part = _flat(groups)[: args.naive]
    naive_s, naive_cpu_s, naive = run_naive(part)
    pool = run_pool(groups, args.processes)
    row = {"naive_per_s": len(part) / naive_s, "pool_per_s": pool.per_s()}
    row["ratio"] = row["pool_per_s"] / row["naive_per_s"]
    row["cpu_ratio"] = naive_cpu_s / len(part) / (pool.cpu_s / len(pool.verdicts))
    row |= {"checks": pool.stats["verifier/checks_total"], "fast_frac": pool.stats["verifier/fast_frac"], "spoilt": 0.0}
    few = groups[: len(groups) // 4]  # every bomb costs these arms its second
    bad = add_hostile(few, rng, 0.0)
    for name, layers in (("bare", (False, True)), ("alone", (False, False))):
        run = run_pool(bad, args.processes, *layers)
        row[f"{name}_loss"], row[f"{name}_cpu_loss"] = 1 - run.per_s() / pool.per_s(), 1 - pool.cpu_s / 4 / run.cpu_s
        row[f"{name}_timeouts"] = run.stats["verifier/timeouts_total"]
        row["spoilt"] += spoilt(few, bad, replace(pool, verdicts=pool.verdicts[: len(run.verdicts)]), run)
    stream = [group for i in range(args.stream // args.pairs) for group in make_pairs(args.data, args.pairs, seed + i)]
    for name, share in (("hostile", 0.0), ("sly", 0.1)):
        bad = add_hostile(stream, rng, share)
        # clean ones before and after: what else the machine does must not pass for a loss
        clean, run, again = (run_pool(arm, args.processes) for arm in (stream, bad, stream))
        per_s = statistics.mean((clean.per_s(), again.per_s()))
        row[f"{name}_loss"] = 1 - run.per_s() / per_s
        row[f"{name}_cpu_loss"] = 1 - statistics.mean((clean.cpu_s, again.cpu_s)) / run.cpu_s
        row[f"{name}_timeouts"] = run.stats["verifier/timeouts_total"]
        row["spoilt"] += spoilt(stream, bad, clean, run)
        row["stream_per_s"] = per_s
    differences: list[list[object]] = [
        [*pair, x, y] for pair, x, y in zip(part, naive, pool.verdicts, strict=False) if x != y
    ]
    return row, differences


def main() -> int:
    args = _arguments()
    logging.disable(logging.CRITICAL)
    run_naive(_flat(make_pairs(args.data, 64, args.seed)))
    rows: list[dict[str, float]] = []
    differences: list[list[object]] = []
    meant: list[list[object]] = []
    invalid = 0
    for repeat in range(args.repeats):
        row, found = one_repeat(args, repeat)
        for reference, response, theirs, our in found:
            invalid += our is None
            if our is not None:
                kept = meant if decided(str(reference), str(response)) else differences
                kept.append([reference, answers.extract_answer(str(response)), theirs, our])
        print({name: round(value, 2) for name, value in row.items()}, flush=True)
        rows.append(row)
    return _report(args, rows, differences, meant, invalid)


def _report(
    args: argparse.Namespace,
    rows: list[dict[str, float]],
    differences: list[list[object]],
    meant: list[list[object]],
    invalid: int,
) -> int:
    """Print the table, write the JSON; 1 when verdicts differ."""
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}"
    compared = args.repeats * args.naive
    spoilt_count = sum(row["spoilt"] for row in rows)
    report = {
        "median": median,
        "compared": compared,
        "invalid": invalid,
        "differences": differences,
        "num_decided_on_purpose": len(meant),
        "decided_on_purpose": _unique(meant),
        "rows": rows,
        "processes": args.processes,
        "machine": machine,
    }
    record("verifier.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{machine}, median of {len(rows)}\n{'arm':<8}{'pairs/s':>10}\nnaive   {median['naive_per_s']:>10.0f}")
    ratios = f"{median['ratio']:.1f}x (goal 20x); {median['cpu_ratio']:.1f}x in processor time"
    print(f"pool    {median['pool_per_s']:>10.0f}   {ratios}\nstream  {median['stream_per_s']:>10.0f}")
    print(f"{len(differences)} differences, {len(meant)} decided on purpose, {invalid} invalid of {compared} compared")
    print(f"{'1% hostile':<34}{'loss':>6}{'in processor time':>20}{'time-outs':>11}")
    for name, text in LOSSES.items():
        loss, cpu_loss, timeouts = (median[f"{name}_{what}"] for what in ("loss", "cpu_loss", "timeouts"))
        print(f"{text:<34}{100 * loss:>5.0f}%{100 * cpu_loss:>19.0f}%{timeouts:>11.0f}")
    print(f"{spoilt_count:.0f} verdicts spoilt by hostile neighbours")
    for difference in differences[:10]:
        print("  difference (reference, response, naive, ours):", difference)
    return 1 if differences or spoilt_count else 0


def _unique(rows: list[list[object]]) -> list[list[object]]:
    return [list(row) for row in dict.fromkeys(map(tuple, rows))]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("CAPO_RAY_SHARED", str(Path(__file__).resolve().parents[2] / "shared"))
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--naive", type=int, default=10_000, help="pairs of the naive arm in one repeat")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path(default) / "data")
    parser.add_argument("--stream", type=int, default=50_000, help="pairs of the stream and hostile arms")
    args = parser.parse_args()
    args.naive, args.stream = min(args.naive, args.pairs // GROUP * GROUP), max(args.stream, args.pairs)
    if not args.data.is_dir():
        parser.error(f"expected a directory with gsm8k/ and math500/, got {args.data}; give --data or CAPO_RAY_SHARED")
    return args


if __name__ == "__main__":
    sys.exit(main())
