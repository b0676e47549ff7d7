"""`capo-ray doctor --cluster`: every node's answers in one table, and what of them would break a run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from capo_ray.cli.compose import compose_train
from capo_ray.protocols import RunFailed

if TYPE_CHECKING:
    from capo_ray.place.nodes import Facts

MAX_CLOCK_S = 1.0
MIN_SHM_GIB = 1.0
HEAD = (
    *("host", "node", "GPUs", "driver", "NCCL", "python", "torch", "vllm", "ray", "capo-ray"),
    *("run.dir", "lacks", "/dev/shm", "store", "clock", "ports"),
)


def run(overrides: Sequence[str], *, as_json: bool) -> int:
    """0 where nothing on any node would break a run with these overrides; 1 otherwise."""
    from capo_ray.place import cluster, nodes

    config = compose_train(overrides)
    if not config.cluster.joined:
        config = compose_train([*overrides, "cluster.address=auto"])
    folder = _existing(Path(config.run.dir).expanduser().absolute())
    with cluster.left_behind():
        cluster.connect(config)
        with nodes.token_in(folder) as token:
            facts = nodes.ask_all(nodes.question_of(config, token))
    found = nodes.faults(facts, config, str(folder))
    notes = _notes(facts)
    if as_json:
        rows = [asdict(one) for one in facts]
        print(json.dumps({"healthy": not found, "faults": found, "notes": notes, "nodes": rows}, indent=2))
    else:
        print(_table(facts))
        for kind, lines in (("bad", found), ("note", notes)):
            for line in lines:
                print(f"{kind:<5}{line}")
        if not found and not notes:
            print("ok   all nodes agree")
    return 1 if found else 0


def _notes(facts: Sequence[Facts]) -> list[str]:
    """What differs, or is small, and would break nothing."""
    heard = [f for f in facts if not f.error]
    notes = []
    for what, values in (
        ("GPU driver", {g["driver_version"] for f in heard for g in f.gpus}),
        ("GPU", {g["name"] for f in heard for g in f.gpus}),
        ("NCCL", {f.nccl for f in heard if f.gpus}),
    ):
        if len(values) > 1:
            notes.append(f"nodes have other {what}s: {', '.join(sorted(values))}")
    for f in heard:
        if abs(f.clock_s) > MAX_CLOCK_S + f.clock_error_s:
            notes.append(f"the clock of {f.host}/{f.node} is off by {f.clock_s:+.1f} s; logs will not line up")
        if f.shm_gib < MIN_SHM_GIB:
            notes.append(f"/dev/shm of {f.host}/{f.node} holds {f.shm_gib:.1f} GiB; Ray's objects then lie on its disk")
    return notes


def _table(facts: Sequence[Facts]) -> str:
    head = [*HEAD]
    rows = [head]
    for f in facts:
        if f.error:
            rows.append([f.host, f.node, "no answer", *[""] * (len(head) - 3)])
            continue
        names = sorted({g["name"] for g in f.gpus})
        rows.append(
            [
                f.host,
                f.node,
                f"{len(f.gpus)} x {'/'.join(names)}" if names else "none",
                "/".join(sorted({g["driver_version"] for g in f.gpus})) or "-",
                f.nccl or "-",
                f.python,
                *(f.versions[name] for name in ("torch", "vllm", "ray", "capo-ray")),
                "seen" if f.sees_run_dir else "NOT SEEN",
                ",".join(f.lacks) or "-",
                f"{f.shm_gib:.1f}G",
                f"{f.store_gib:.1f}G",
                f"{f.clock_s:+.2f}s",
                "ok" if f.can_listen else "NONE",
            ]
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.is_dir():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise RunFailed(f"run.dir: expected a directory that can be written, got {folder}; choose another")
    return folder
