"""Runs from Python: configurations, training, evaluation."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.cli import prefer_own_programs
from capo_ray.cli.compose import compose_train
from capo_ray.cli.overrides import Override, settings_of
from capo_ray.config import TrainConfig
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import SUMMARY_FILE

_UNDER_WAY = threading.Lock()
Config = Mapping[str, Any] | Iterable[str]
"""Settings as a tree, `{"credit": "grpo", "learner": {"lr": 1e-5}}`, or words, `["credit=grpo", "learner.lr=1e-5"]`."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run that ended as asked: its directory, and what its summary.json says."""

    directory: Path
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation: its directory, the figures of each suite and, where it was asked for, by suite and mean the
    difference to another evaluation on the same problems."""

    directory: Path
    suites: dict[str, dict[str, Any]]
    comparison: dict[str, dict[str, Any]]


def compose(config: Config = ()) -> TrainConfig:
    """The whole configuration of a training run that these settings ask for, checked as by `capo-ray train`."""
    return compose_train(to_overrides(config))


def train(config: Config | TrainConfig = ()) -> Run:
    """The finished run of a configuration; blocks until it ends, and shows it as `capo-ray train` does.

    Raises `RunFailed` where it is refused or fails, `KeyboardInterrupt` where it is interrupted; both have the run's
    directory as `run_dir` once there is one. One run at a time in a process; its main thread alone hears signals.
    """
    from capo_ray.cli.train import train as start

    with _alone("capo_ray.train", "capo-ray train"):
        directory = start(config if isinstance(config, TrainConfig) else compose(config))
    return Run(directory, json.loads((directory / SUMMARY_FILE).read_text(encoding="utf-8")))


def evaluate(config: Config, *, compare: str | None = None) -> Evaluation:
    """The accuracy of a policy on benchmarks: `evaluate({"model": "runs/latest", "suite": "gsm8k", …})`.

    `compare` is a model, run or earlier evaluation that is asked the same problems. Raises as `train` does.
    """
    from capo_ray.cli.eval import evaluate as start

    with _alone("capo_ray.evaluate", "capo-ray eval"):
        told = start(to_overrides(config), compare)
    return Evaluation(Path(told["directory"]), told["suites"], told.get("comparison", {}))


def to_overrides(config: Config) -> list[Override]:
    """Settings as a command line has them."""
    if isinstance(config, str):
        return [config]
    return list(settings_of(config)) if isinstance(config, Mapping) else list(config)


@contextmanager
def _alone(name: str, command: str) -> Iterator[None]:
    """Raise in a notebook, or any other place where an event loop already runs, and beside a run of another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RunFailed(
            f"{name} needs a thread to itself, and an event loop runs in this one (as in a notebook); call it from a "
            f"script, or run !{command} …"
        )
    if not _UNDER_WAY.acquire(blocking=False):
        raise RunFailed(
            f"{name}: expected no run under way in this process, which joins one Ray cluster at a time, got one in "
            f"another thread; wait for it, or start {command} …"
        )
    try:
        prefer_own_programs()
        yield
    finally:
        _UNDER_WAY.release()
