"""A run's directory: made once, owned by one driver at a time, and what stands in it.

config.yaml  metrics.jsonl  ledger.sqlite  transcripts.jsonl  critiques.sqlite  quarantine.jsonl  checkpoints/
tensorboard/
learning_curve.png  summary.json  lock
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import yaml

from capo_ray.config import TrainConfig
from capo_ray.protocols import RunFailed

CONFIG_FILE = "config.yaml"
LATEST = "latest"


def open_new(config: TrainConfig) -> tuple[Path, TrainConfig]:
    """A new run directory and the configuration as resolved, which stands in it; `latest` then points to it.

    The resolved `run.name` names the run in its ledger from then on, whatever becomes of the directory's name.
    """
    base = Path(config.run.dir).expanduser().resolve()
    name = config.run.name or f"{time.strftime('%Y%m%d-%H%M%S')}-{config.credit.method}"
    path = base / name
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        raise RunFailed(
            f"expected run.name={name} to be new, got an existing directory {path}; choose another run.name, "
            f"or go on with it: resume={path}"
        ) from error
    except OSError as error:
        raise RunFailed(f"expected to make the run directory {path}, got: {error.strerror}; set run.dir") from error
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    (path / CONFIG_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    point_latest(path)
    return path, config


def open_existing(resume: str) -> Path:
    """The path of a run to go on with."""
    path = Path(resume).expanduser().resolve()
    if not (path / CONFIG_FILE).is_file():
        raise RunFailed(f"expected resume={resume} to be a run directory with {CONFIG_FILE}, found none there")
    return path


def point_latest(path: Path) -> None:
    """Let `latest` beside the run point to it, in one atomic rename."""
    link = path.parent / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(path.parent / LATEST)
