r"""Dead critic workers: a run whose critic is killed (SIGKILL) every 30 s trains the same problems as one left alone.

    python benchmarks/dead_critics.py [--every 30] [--updates 36]

The real main job: Ray actors, vLLM, DeepSpeed. On-policy (stream.max_age=0) and at a learning rate of next to nothing,
so that which problems are trained depends on nothing but what is lost: both runs should train the first `updates` x 8
of them. With credit.quorum=3, a group that came back with fewer votes would count as fallen back to its outcome. Fails
when the sets differ, a group was lost or fell back, a trajectory was trained twice, or fewer than two kills hit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from records import record

from capo_ray.ledger import read_balance
from capo_ray.runs.layout import LEDGER_FILE

RESULTS = record("dead_critics.json")
SETTINGS = (
    "stream.max_age=0", "learner.lr=1e-7", "learner.num_epochs=1", "credit.quorum=3", "run.eval_every=0",
    "run.eval_problems=16", "tracking.tensorboard=false",
)  # fmt: skip


def run(folder: Path, name: str, updates: int, every_s: float) -> dict[str, Any]:
    """The figures of one run; with `every_s` > 0 its critic worker is killed that often."""
    run_dir = folder / name
    words = [*SETTINGS, f"run.dir={folder}", f"run.name={name}", f"run.num_updates={updates}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "capo_ray", "train", *words], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        killed, next_kill = 0, 0.0
        while process.poll() is None:
            time.sleep(0.5)
            if every_s and (run_dir / "metrics.jsonl").exists():
                next_kill = next_kill or time.monotonic() + every_s
                if time.monotonic() >= next_kill:
                    next_kill += every_s
                    killed += kill_critic(run_dir)
    if process.returncode:
        raise SystemExit(f"the run {name} failed:\n{(folder / f'{name}.log').read_text()[-3000:]}")
    return read(run_dir) | {"killed": killed}


def kill_critic(run_dir: Path) -> int:
    """1 where a critic worker was there to be killed."""
    for pid in json.loads((run_dir / "workers.json").read_text())["critic"]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        return 1
    return 0


def read(run_dir: Path) -> dict[str, Any]:
    """What a run trained, lost and restarted."""
    with sqlite3.connect(f"file:{run_dir / LEDGER_FILE}?mode=ro", uri=True) as db:
        trained = [row[0] for row in db.execute("SELECT DISTINCT problem FROM trajectories WHERE state = 'trained'")]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "loss/objective_mean" in row][-1]
    balance = read_balance(run_dir / LEDGER_FILE).to_dict()
    names = ("restarts_total", "calls_resent_total", "lost_groups_total", "retried_groups_total", "outcome_only_frac")
    return {
        "trained": sorted(trained),
        "balanced": balance["balanced"],
        "trained_twice": balance["trained_twice"],
        "wall_s": json.loads((run_dir / "summary.json").read_text())["wall_s"],
        **{name: last[f"critic/{name}"] for name in names},
    }


def failures(calm: dict[str, Any], killed: dict[str, Any]) -> list[str]:
    """What did not hold."""
    wrong = []
    if calm["trained"] != killed["trained"]:
        wrong.append(f"{len(set(calm['trained']) ^ set(killed['trained']))} problems were trained in one run only")
    for figures in (calm, killed):
        if figures["lost_groups_total"] or figures["outcome_only_frac"]:
            wrong.append("a group lost its critiques")
        if not figures["balanced"] or figures["trained_twice"]:
            wrong.append("the ledger does not balance")
    if killed["killed"] < 2 or killed["restarts_total"] < killed["killed"]:
        wrong.append(f"{killed['killed']} kills and {killed['restarts_total']:.0f} restarts: too few to tell")
    return wrong


def main() -> int:
    """0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between kills")
    parser.add_argument("--updates", type=int, default=36)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        killed = run(Path(name), "killed", args.updates, args.every)
        calm = run(Path(name), "calm", args.updates, 0.0)
    wrong = failures(calm, killed)
    same = len(set(calm["trained"]) & set(killed["trained"]))
    print(
        f"{killed['killed']} kills in {killed['wall_s']:.0f} s: {killed['calls_resent_total']:.0f} groups judged "
        f"again, {killed['lost_groups_total']:.0f} lost; {same} of {len(calm['trained'])} problems trained in both "
        f"runs ({calm['wall_s']:.0f} s without kills)"
    )
    kept = [
        {k: v for k, v in run.items() if k != "trained"} | {"trained": len(run["trained"])} for run in (killed, calm)
    ]
    args.output.parent.mkdir(exist_ok=True)
    record = {"every_s": args.every, "updates": args.updates, "same": same, "killed": kept[0], "calm": kept[1]}
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print("; ".join(wrong) or "nothing was lost")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
