r"""B9: verified pairs per second, G=16 with 40% distinct answers, against math-verify called naively.

    python benchmarks/verifier.py [--pairs 10000] [--repeats 5] [--naive 2000] [--processes 2] [--data DIR] [--hostile]

The pairs come from GSM8K and MATH-500 (half of the groups each); a response is the worked solution with its final
answer replaced. Of 16 siblings some are right (some in another spelling), the others give one of a few wrong answers:
shifted numbers, changed digits, or the answers of other problems of the same set.
Arms, interleaved in every repeat, each in a fresh state:
    naive     one process, `verify(parse(reference), parse(response))` on every response, time-outs off (with
              --naive below --pairs only on a slice of them, each repeat another one, scaled by its share)
    pool      `VerifierPool` with warm children and an empty cache, on all pairs
    hostile   (with --hostile) the same with 1% of the responses replaced by hostile ones
Fails when a verdict differs from the naive arm's, but for the differences decided on purpose, which are listed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import re
import statistics
import sys
import time
from pathlib import Path

from capo_ray import answers
from capo_ray.config.sections import VerifierConfig
from capo_ray.verifiers import VerifierPool

sys.path.insert(0, str(Path(__file__).parent))
from hostile_verifier import make_hostile

GROUP = 16
_MARK = re.compile(r"\$*\\boxed|\$*\\fbox|####|The answer is")
Pairs = list[tuple[str, str]]


def read_solutions(data: Path, name: str) -> list[tuple[str, str]]:
    """Reference answer and worked solution (its final answer cut off) of each problem of one data set."""
    lines = (data / name / "test.jsonl").read_text().splitlines()
    columns = [json.loads(line)["answer"] for line in lines]
    return [(answers.reference_answer(text), _MARK.split(text, maxsplit=1)[0].strip()) for text in columns]


def respell(answer: str, rng: random.Random) -> str:
    """The same answer as another sibling may write it."""
    if answer.lstrip("-").isdigit():
        return rng.choice((answer, f"{answer}.0", f"{int(answer):,}", f"\\${answer}", f"{answer}.00"))
    return rng.choice(
        (answer, answer.replace("\\frac", "\\dfrac"), answer.replace(" ", ""), f" {answer} ", answer + ".")
    )


def make_wrong(answer: str, others: list[str], rng: random.Random) -> str:
    """A wrong answer of the kind that models give."""
    if answer.lstrip("-").isdigit():
        value = int(answer)
        return str(rng.choice((value + rng.randint(1, 9), value * 2, value * 10, -value - 1, value / 3, f"{value}.5")))
    digits = [i for i, char in enumerate(answer) if char.isdigit()]
    if not digits or rng.random() < 0.4:
        return rng.choice(others)
    place = rng.choice(digits)
    return answer[:place] + str((int(answer[place]) + rng.randint(1, 8)) % 10) + answer[place + 1 :]


def make_group(solution: tuple[str, str], others: list[str], index: int, rng: random.Random) -> Pairs:
    """16 pairs with 6 or 7 distinct answers (6.4 on average: 40%)."""
    reference, body = solution
    distinct = 7 if index % 5 in (1, 3) else 6
    right = [reference, respell(reference, rng)]
    wrong = [make_wrong(reference, others, rng) for _ in range(distinct - len(right))]
    spread = right + wrong
    chosen = spread + [rng.choice(spread) for _ in range(GROUP - len(spread))]
    rng.shuffle(chosen)
    return [(reference, f"{body}\n\nSo we get $\\boxed{{{text}}}$") for text in chosen]


def make_pairs(data: Path, count: int, seed: int) -> list[Pairs]:
    """Groups of pairs, alternately from both data sets."""
    rng = random.Random(seed)
    sets = [read_solutions(data, "gsm8k"), read_solutions(data, "math500")]
    references = [[reference for reference, _ in rows] for rows in sets]
    return [make_group(rng.choice(sets[i % 2]), references[i % 2], i, rng) for i in range(count // GROUP)]


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


def run_pool(groups: list[Pairs], processes: int) -> tuple[float, float, list[list[int | None]], dict[str, float]]:
    """Wall and processor seconds, verdicts per group and figures of a pool with warm children and empty caches."""
    with VerifierPool(VerifierConfig(num_processes=processes, deadline_s=600)) as pool:
        warm = [pool.verify("y+1", [f"\\boxed{{|y|-{i}}}" for i in range(8 * processes)]) for _ in range(2)]
        asyncio.run(_gather(warm))
        for cached in (answers.fast_equal, answers.normalise):
            cached.cache_clear()
        start, cpu = time.perf_counter(), _cpu_s(pool)
        verdicts = asyncio.run(_drive(pool, groups))
        return time.perf_counter() - start, _cpu_s(pool) - cpu, verdicts, pool.stats()


def _cpu_s(pool: VerifierPool) -> float:
    """Processor seconds of this process and of the checkers (those killed on the way are left out)."""
    return time.process_time() + sum(lane._cpu_s for lane in pool._lanes)


async def _gather(calls: list) -> None:  # type: ignore[type-arg]
    await asyncio.gather(*calls)


def decided(reference: str, response: str) -> str | None:
    """Why a difference from the library is meant: the house rule at work, or None."""
    found = answers.extract_answer(response) or ""
    a, b = answers.normalise(reference), answers.normalise(found)
    if answers.decide(a, b) is not None:
        return "house rule"
    return "percent" if "%" in a + b else None


def main() -> int:
    args = _arguments()
    logging.disable(logging.CRITICAL)
    groups = make_pairs(args.data, args.pairs, args.seed)
    rng = random.Random(args.seed + 1)
    hostile = [[(a, make_hostile(rng) if rng.random() < 0.01 else r) for a, r in group] for group in groups]
    flat = [pair for group in groups for pair in group]
    run_naive(flat[:50])
    rows: list[dict[str, float]] = []
    differences: list[list[object]] = []
    meant: list[list[object]] = []
    compared = invalid = 0
    for repeat in range(args.repeats):
        first = repeat * args.naive % len(flat)
        part = flat[first : first + args.naive]
        naive_s, naive_cpu_s, naive = run_naive(part)
        pool_s, pool_cpu_s, verdicts, stats = run_pool(groups, args.processes)
        row = {"naive_per_s": len(part) / naive_s, "pool_per_s": len(flat) / pool_s}
        row["ratio"] = row["pool_per_s"] / row["naive_per_s"]
        row["cpu_ratio"] = naive_cpu_s * len(flat) / len(part) / pool_cpu_s
        if args.hostile:
            row["hostile_loss"] = 1 - pool_s / run_pool(hostile, args.processes)[0]
        ours = [reward for group in verdicts for reward in group][first : first + args.naive]
        for pair, theirs, our in zip(part, naive, ours, strict=True):
            compared += 1
            invalid += our is None
            if our is not None and our != theirs:
                (meant if decided(*pair) else differences).append(
                    [pair[0], answers.extract_answer(pair[1]), theirs, our]
                )
        print({name: round(value, 2) for name, value in row.items()}, flush=True)
        rows.append({**row, "checks": stats["verifier/checks"], "fast_frac": stats["verifier/fast_frac"]})
    return _report(args, rows, differences, meant, compared, invalid)


def _report(
    args: argparse.Namespace,
    rows: list[dict[str, float]],
    differences: list[list[object]],
    meant: list[list[object]],
    compared: int,
    invalid: int,
) -> int:
    """Print the table, write the JSON; 1 when verdicts differ."""
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}"
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
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "verifier.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{machine}, median of {len(rows)}\n{'arm':<8}{'pairs/s':>10}\nnaive   {median['naive_per_s']:>10.0f}")
    ratios = f"{median['ratio']:.1f}x (goal 20x); {median['cpu_ratio']:.1f}x in processor time"
    print(f"pool    {median['pool_per_s']:>10.0f}   {ratios}")
    print(f"{len(differences)} differences, {len(meant)} decided on purpose, {invalid} invalid of {compared} compared")
    if args.hostile:
        print(f"with 1% hostile: {100 * median['hostile_loss']:.0f}% less (goal <= 10%)")
    for difference in differences[:10]:
        print("  difference (reference, response, naive, ours):", difference)
    return 1 if differences else 0


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
    parser.add_argument("--hostile", action="store_true")
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"expected a directory with gsm8k/ and math500/, got {args.data}; give --data or CAPO_RAY_SHARED")
    return args


if __name__ == "__main__":
    sys.exit(main())
