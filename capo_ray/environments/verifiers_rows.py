"""The problems in the data of an environment of the package `verifiers`, read in a process that ends: the package takes
the signals of the process that makes an environment, and a run's are its own.

    python -m capo_ray.environments.verifiers_rows SETTINGS     -> {"train": [[question, answer], ...], "held_out": ...}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from capo_ray.environments.verifiers_loading import environment_of, question_of
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem

READ_S = 300.0
"""Most of it is the import of the package, 4 s of processor time."""


def rows(settings: Mapping[str, Any]) -> tuple[list[Problem], list[Problem]]:
    """Training problems, and held-out ones (none where the environment has none); RunFailed with a sentence."""
    told = _read(json.dumps({"id": settings["id"], "args": settings["args"]}, sort_keys=True))
    train, held_out = (
        [
            Problem(f"{settings['id']}/{split}/{i}", question, answer, None, "verifiers")
            for i, (question, answer) in enumerate(told[split])
        ]
        for split in ("train", "held_out")
    )
    return train, held_out


@cache
def _read(settings: str) -> dict[str, list[tuple[str, str]]]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    line = [sys.executable, "-P", "-W", "ignore", "-m", "capo_ray.environments.verifiers_rows", settings]
    try:
        done = subprocess.run(
            line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=READ_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"expected the environment's data within {READ_S:.0f} s ({settings})") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunFailed(f"environment=verifiers {settings}: expected an environment with data (got: {reason})")
    told: dict[str, list[tuple[str, str]]] = json.loads(done.stdout)
    return told


def read(settings: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Question and answer of each row; the environment is loaded here."""
    env = environment_of(settings)
    told = {"train": env.build_dataset() or (), "held_out": env.build_eval_dataset() or ()}
    if not told["train"]:
        raise ValueError("it has no rows to train on")
    return {split: [(question_of(row), str(row.get("answer", ""))) for row in data] for split, data in told.items()}


if __name__ == "__main__":
    out = os.dup(1)
    os.dup2(2, 1)  # what an environment prints is not ours
    with os.fdopen(out, "w") as file:
        json.dump(read(json.loads(sys.argv[1])), file)
