"""How long a run of very many trajectories takes to open, and what the server then holds: `make bench NAME=view`.

A run of `--groups` groups of 8 responses (40 tokens each, as the laptop's) is written to a temporary folder, served by
`capo-ray view`, and asked for what the first page, a list, a group, what-if and a search need.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
from records import record

from capo_ray.config import TrainConfig
from capo_ray.credit import assign_credit
from capo_ray.metrics.rows import to_line
from capo_ray.metrics.transcripts import group_line
from capo_ray.types import (
    Completion,
    Critique,
    Evidence,
    Group,
    Judged,
    Problem,
    Provenance,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
    Watched,
)

RESULTS = record("view.json")
WHOLE = 12_500
GROUPS_PER_UPDATE = 8


def main() -> None:
    """Prints and keeps one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=WHOLE, help="12,500 groups of 8 are 10^5 trajectories")
    parser.add_argument("--output", type=Path, help="default: view.json (records.py), of a run of whole size only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(Path(folder) / "run", args.groups)
        size = (path / "transcripts.jsonl").stat().st_size
        found = {
            "trajectories": args.groups * 8,
            "transcripts_mib": round(size / 2**20, 1),
            **measure(path, args.groups // 2),
        }
    print(json.dumps(found, indent=1))
    output = args.output or (RESULTS if args.groups == WHOLE else None)
    if output:
        output.write_text(json.dumps(found, indent=1) + "\n")


def write_run(path: Path, num_groups: int) -> Path:
    """A run's settings, rows and transcript."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("credit: {method: capo}\nrun: {num_updates: 1000}\n")
    credit = TrainConfig().credit
    with (path / "transcripts.jsonl").open("wb") as file, (path / "metrics.jsonl").open("wb") as rows:
        for number in range(num_groups):
            group = _group(number)
            update = number // GROUPS_PER_UPDATE + 1
            file.write(to_line(group_line(update, group, assign_credit(group, credit, 0.0), _watched(group))))
            if number % GROUPS_PER_UPDATE == 0:
                figures = {f"room/figure_{i}_frac": 0.123 * i for i in range(125)}
                rows.write(to_line({"update": update, "unix_s": float(update), "rollout/reward_mean": 0.5, **figures}))
    return path


def _watched(group: Group) -> Watched:
    """What the learner says of each token, in as many digits as in a run."""
    told = {name: np.linspace(-2.0, -0.001, 40) for name in ("policy_logprobs", "policy_entropies")}
    return {member.trajectory.key: told for member in group.members}


def _group(number: int) -> Group:
    def member(sample: int) -> Judged:
        text = "".join(f"{k}+{k}={(2 * k + sample) % 10}\n" for k in range(10))
        ends = (np.arange(40) + 1) * len(text) // 40
        completion = Completion(np.arange(40), np.full(40, -0.3), ends, text, (VersionRun(1, 40),), "stop")
        votes = tuple(
            Critique(frozenset({sample % 10}), True, "step 3: wrong", "", Provenance("c", "", i)) for i in range(4)
        )
        steps = tuple((4 * k, 4 * k + 4) for k in range(10))
        key = TrajectoryKey(f"p{number}", number, sample)
        return Judged(
            Trajectory(key, np.array((1, 2)), completion),
            Verdict(sample % 2, "", "4"),
            steps,
            Evidence(critiques=votes),
        )

    return Group(number, Problem(f"p{number}", f"question {number}", "4"), tuple(map(member, range(8))))


def measure(path: Path, middle: int) -> dict[str, float]:
    """Seconds of each kind of request and the server's largest resident memory."""
    environment = os.environ | {"CAPO_RAY_VIEW_TOKEN": "t"}
    words = [sys.executable, "-m", "capo_ray", "view", str(path), "--print-url"]
    began = time.perf_counter()
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    base = server.stdout.readline().split("?")[0]
    found = {"start_s": time.perf_counter() - began}
    try:
        for name, address in (
            ("open_s", "api/runs"),
            ("open_again_s", "api/runs"),
            ("curves_s", "api/runs/0/series?names=rollout/reward_mean"),
            ("list_s", "api/runs/0/groups?sort=disagreement"),
            ("group_s", "api/runs/0/groups/{middle}"),
            ("what_if_s", "api/runs/0/groups/{middle}/credit?method=grpo"),
            ("critic_s", "api/runs/0/critic"),
            ("search_s", "api/runs/0/groups?find=question+{middle}"),
        ):
            request = urllib.request.Request(
                base + address.format(middle=middle), headers={"Authorization": "Bearer t"}
            )
            began = time.perf_counter()
            with urllib.request.urlopen(request, timeout=120) as answer:
                answer.read()
            found[name] = round(time.perf_counter() - began, 3)
        found["resident_mib"] = round(psutil.Process(server.pid).memory_info().rss / 2**20, 1)
    finally:
        server.terminate()
        server.wait()
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
