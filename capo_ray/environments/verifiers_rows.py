"""The problems in the data of an environment of the package `verifiers`, read in a process that ends: the package takes
the signals of the process that makes an environment, and a run's are its own.

    python -m capo_ray.environments.verifiers_rows {"id": ID, "args": ARGS, "data": true}
        -> {"train": [[question, answer, mark], ...], "held_out": ...}, or {"error": sentence} and its traceback

`mark` is equal for rows that are equal in everything; "data": false tries the environment alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from typing import Any

from capo_ray.environments.verifiers_loading import environment_of, question_of
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem

READ_S = 300.0
"""Most of it is the import of the package, 4 s of processor time."""


def check(settings: Mapping[str, Any]) -> None:
    """RunFailed with a sentence on an environment that is not there or cannot be played."""
    _told(settings, data=False)


def rows(settings: Mapping[str, Any], eval_frac: float) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and those held out, the last `eval_frac` where the environment has none of these.

    No row is on both sides; rows of one question may be, as of a game that always opens alike. RunFailed with a
    sentence.
    """
    told = _told(settings, data=True)
    train, held_out = (
        [
            (Problem(f"{settings['id']}/{split}/{i}", question, answer, None, "verifiers"), mark)
            for i, (question, answer, mark) in enumerate(told[split])
        ]
        for split in ("train", "held_out")
    )
    if not held_out and eval_frac:
        cut = len(train) - max(1, round(len(train) * eval_frac))
        train, held_out = train[:cut], train[cut:]
    known = {mark for _, mark in held_out}
    return [problem for problem, mark in train if mark not in known], [problem for problem, _ in held_out]


def _told(settings: Mapping[str, Any], data: bool) -> dict[str, list[tuple[str, str, str]]]:
    return _read(json.dumps({"id": settings["id"], "args": settings["args"], "data": data}, sort_keys=True))


@cache
def _read(settings: str) -> dict[str, list[tuple[str, str, str]]]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    line = [sys.executable, "-P", "-W", "ignore", "-m", "capo_ray.environments.verifiers_rows", settings]
    try:
        done = subprocess.run(
            line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=READ_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"expected the environment's data within {READ_S:.0f} s ({settings})") from error
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:  # it left the process
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        told = {"error": f"its process ended with code {done.returncode} ({last})"}
    if "error" in told:
        name = json.loads(settings)["id"]
        raise RunFailed(
            f"environment.id={name}: expected an environment of the package verifiers that can be loaded and has data "
            f"(got: {told['error']}); to see where, python -m capo_ray.environments.verifiers_rows '{settings}'"
        )
    return told


def read(settings: Mapping[str, Any]) -> dict[str, list[tuple[str, str, str]]]:
    """Question, answer and mark of each row; the environment is loaded here."""
    env = environment_of(settings)
    if not settings["data"]:
        return {}
    told = {"train": env.build_dataset() or (), "held_out": env.build_eval_dataset() or ()}
    if not told["train"]:
        raise ValueError("it has no rows to train on")
    return {split: [_row(row) for row in data] for split, data in told.items()}


def _row(row: Mapping[str, Any]) -> tuple[str, str, str]:
    answer, rest = row.get("answer"), {key: value for key, value in row.items() if key != "example_id"}
    mark = hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return question_of(row), "" if answer is None else str(answer), mark


def _answer(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of it: of an environment that raises, or ends the process by `SystemExit`, a sentence."""
    try:
        return read(settings)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - told, and ends the command
        traceback.print_exc()
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


if __name__ == "__main__":
    out = os.dup(1)
    os.dup2(2, 1)  # what an environment prints is not ours
    with os.fdopen(out, "w") as file:
        json.dump(_answer(json.loads(sys.argv[1])), file)
