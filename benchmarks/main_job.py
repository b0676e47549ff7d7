"""The main job over seeds: held-out accuracy before and after, greedy and sampled, of each credit method, and its cost.

    make bench NAME=main_job ARGS="--seeds 5 --methods capo_w1 grpo"

Arms are interleaved seed by seed; the same seed sees the same problems. Raw summaries go where records.py says. The
exit code is 1 where a seed ends below its start, greedily or sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from records import record

RESULTS = record("main_job.json")
MAIN_JOB = ("experiment=novice",)
"""What `make train` asks for."""
MEASURES = ("greedy_accuracy", "accuracy")
ENDS = tuple(f"{end}_{measure}{ci95}" for measure in MEASURES for end in ("initial", "final") for ci95 in ("", "_ci95"))
KEPT = (*ENDS, "updates", "trajectories", "trained", "critiques", "critic", "wall_s")
CURVES = {"greedy_accuracy": "eval/greedy_accuracy_frac", "accuracy": "eval/accuracy_frac"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["capo_w1"], help="choices of credit")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="overrides for every run")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for method in args.methods:
                rows.append(run_one(Path(folder), method, seed, args.overrides))
                show(rows[-1])
                RESULTS.write_text(json.dumps({"cores": os.cpu_count(), "runs": rows}, indent=1) + "\n")
    for method in args.methods:
        summarise(method, [row for row in rows if row["method"] == method])
    worse = [row for row in rows if any(row[f"final_{name}"] < row[f"initial_{name}"] for name in MEASURES)]
    return 1 if worse else 0


def run_one(folder: Path, method: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """The kept figures of one run, with its curves of (update, held-out accuracy)."""
    name = f"{method}-{seed}"
    words = [*MAIN_JOB, f"credit={method}", f"run.seed={seed}", f"run.dir={folder}", f"run.name={name}", *overrides]
    done = subprocess.run(
        [sys.executable, "-m", "capo_ray", "train", *words], capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
    summary = json.loads((folder / name / "summary.json").read_text())
    metrics = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    curves = {name: [(row["update"], row[key]) for row in metrics if key in row] for name, key in CURVES.items()}
    stages = {
        key: statistics.fmean(row[key] for row in metrics if key in row)
        for key in ("time/rollout_s", "time/evidence_s", "time/update_s", "time/publish_s", "time/wait_for_batch_s")
    }
    return {"method": method, "seed": seed, "curves": curves, "stages": stages, **{key: summary[key] for key in KEPT}}


def show(row: dict[str, Any]) -> None:
    for name, curve in row["curves"].items():
        points = " ".join(f"{accuracy:.2f}" for _, accuracy in curve)
        print(f"{row['method']:<11} seed {row['seed']} {name:<15}: {points}   {row['wall_s']:.0f} s", flush=True)


def summarise(method: str, rows: list[dict[str, Any]]) -> None:
    """Prints two rows of a table: means over seeds at each evaluation, the range at the ends, and the wall time."""
    updates = [update for update, _ in rows[0]["curves"]["accuracy"]]
    head = " | ".join(map(str, updates))
    print(f"\n| `credit={method}`, {len(rows)} seeds | {head} | first, lowest to highest | last | s |")
    print("|---" * (len(updates) + 4) + "|")
    seconds = [row["wall_s"] for row in rows]
    for name in MEASURES:
        points = list(zip(*([y for _, y in row["curves"][name]] for row in rows), strict=True))
        means = " | ".join(f"{statistics.fmean(column):.2f}" for column in points)
        ends = " | ".join(f"{min(column):.2f} to {max(column):.2f}" for column in (points[0], points[-1]))
        print(f"| {name} | {means} | {ends} | {min(seconds):.0f} to {max(seconds):.0f} |")


if __name__ == "__main__":
    sys.exit(main())
