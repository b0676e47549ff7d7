"""The trackers of a run behind one door."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from capo_ray.config.sections import TrackingConfig
from capo_ray.metrics.rows import JsonlTracker
from capo_ray.metrics.trackers import MlflowTracker, TensorBoardTracker, TrackioTracker, WandbTracker
from capo_ray.protocols import RunFailed, Tracker
from capo_ray.runs.layout import METRICS_FILE, TENSORBOARD_DIR

_log = logging.getLogger(__name__)


class Showing(Tracker, Protocol):
    """A tracker that people look at."""

    def show(self, line: Mapping[str, Any]) -> None:
        """Show a transcript's line."""


class FanOut:
    """The record and the optional trackers (`protocols.Tracker`).

    An error of the record is the run's. An optional tracker that raises is reported once and dropped; later rows carry
    `metrics/dropped_trackers`.
    """

    def __init__(self, record: Tracker, optional: Mapping[str, Showing]) -> None:
        self._record = record
        self._optional = dict(optional)
        self.num_dropped = 0

    def log(self, metrics: Mapping[str, float], *, update: int) -> None:
        """Record the figures, then show them wherever else that still works."""
        dropped = {"metrics/dropped_trackers": float(self.num_dropped)} if self.num_dropped else {}
        self._record.log({**metrics, **dropped}, update=update)
        for name, tracker in list(self._optional.items()):
            self._attempt(name, lambda tracker=tracker: tracker.log(metrics, update=update))  # type: ignore[misc]

    def show(self, line: Mapping[str, Any]) -> None:
        """Give a transcript's line to the optional trackers."""
        for name, tracker in list(self._optional.items()):
            self._attempt(name, lambda tracker=tracker: tracker.show(line))  # type: ignore[misc]

    def close(self) -> None:
        """Close all of them."""
        self._record.close()
        for name, tracker in list(self._optional.items()):
            self._attempt(name, tracker.close)

    def _attempt(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever a tracker's service throws; counted, once per tracker
            del self._optional[name]
            self.num_dropped += 1
            _log.warning("tracker %s failed (%s: %s); the run goes on without it", name, type(error).__name__, error)


def build_trackers(
    config: TrackingConfig, run_dir: Path, run_config: Mapping[str, Any], *, resume_from: int | None = None
) -> FanOut:
    """The trackers that `config` asks for; raises `RunFailed` when one of them cannot be started.

    `resume_from` is the version of the checkpoint that the run goes on from: later rows are cut away.
    """
    makers: dict[str, Callable[[], Showing]] = {
        "tensorboard": lambda: TensorBoardTracker(run_dir / TENSORBOARD_DIR, resume_from),
        "wandb": lambda: WandbTracker(config.project, run_dir, run_config, resume_from is not None),
        "mlflow": lambda: MlflowTracker(config.project, run_dir, run_config, resume_from is not None),
        "trackio": lambda: TrackioTracker(config.project, run_dir, run_config, resume_from is not None),
    }
    record = JsonlTracker(run_dir / METRICS_FILE, resume_from)
    optional = {}
    for name, make in makers.items():
        if not getattr(config, name):
            continue
        try:
            optional[name] = make()
        except ImportError as error:
            raise RunFailed(
                f"tracking.{name}=true needs the package {name}, which cannot be imported ({error}); pip install "
                f"'capo-ray[{name}]', or set tracking.{name}=false"
            ) from error
        except Exception as error:
            raise RunFailed(
                f"tracking.{name}=true, but it cannot be started ({type(error).__name__}: {error}); "
                f"repair that or set tracking.{name}=false"
            ) from error
    return FanOut(record, optional)
