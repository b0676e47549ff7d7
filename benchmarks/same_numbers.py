"""Whether a run repeats itself to the last digit: what a refactoring must show, and what `run.seed` promises.

    make bench NAME=same_numbers                                    two runs of this code
    make bench NAME=same_numbers ARGS="--against runs/before"       this code and a run of another commit's

Made with stream.max_age=0 and one engine, where nothing depends on who ends first. Another machine rounds otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FIXED = ("stream.max_age=0", "engine.num_workers=1", "run.eval_every=0")
NUMBERS = ("loss/objective_mean", "loss/kl_nats", "loss/entropy_nats", "rollout/reward_mean", "eval/accuracy_frac")
OLD_NAMES = {"loss/total": "loss/objective_mean"}
"""Of runs made before metrics had a register."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="a finished run made with the same overrides")
    parser.add_argument("--keep", type=Path, help="directory in which the run is kept, as `before`")
    parser.add_argument("overrides", nargs="*", default=["run.num_updates=6"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours = numbers_of(make_run(args.keep or Path(folder), "before" if args.keep else "first", args.overrides))
        theirs = numbers_of(args.against or make_run(Path(folder), "second", args.overrides))
    for mine, other in zip(ours, theirs, strict=False):
        print(f"update {mine['update']:>3.0f}  {'same ' if mine == other else 'OTHER'}  {mine}")
        if mine != other:
            print(f"                   {other}")
    same = ours == theirs
    print(f"{len(ours)} rows, {'equal to the last digit' if same else 'not equal'}")
    return 0 if same else 1


def make_run(folder: Path, name: str, overrides: list[str]) -> Path:
    """The directory of a finished run."""
    words = [*FIXED, f"run.dir={folder}", f"run.name={name}", *overrides]
    done = subprocess.run(
        [sys.executable, "-m", "capo_ray", "train", *words], capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
    return folder / name


def numbers_of(run: Path) -> list[dict[str, float]]:
    """What must not change, by update."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{OLD_NAMES.get(name, name): value for name, value in row.items()} for row in rows]
    return [{name: row[name] for name in ("update", *NUMBERS) if name in row} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
