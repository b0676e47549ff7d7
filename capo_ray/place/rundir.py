"""A run's directory: made once, owned by one driver at a time, and what stands in it.

config.yaml  metrics.jsonl  ledger.sqlite  transcripts.jsonl  critiques.sqlite  quarantine.jsonl  checkpoints/
tensorboard/
learning_curve.png  summary.json  lock
"""

from __future__ import annotations

import itertools
import os
import sys
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
    path = _make(base, config)
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": path.name})})
    (path / CONFIG_FILE).write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    point_latest(path)
    return path, config


def _make(base: Path, config: TrainConfig) -> Path:
    """The new directory of a run; without a name, the first that no run of the same second has."""
    now = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.credit.method}"
    later = (f"{now}-{count}" for count in itertools.count(2))
    for name in [config.run.name] if config.run.name else itertools.chain([now], later):
        path = base / name
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            if config.run.name:
                raise RunFailed(
                    f"expected run.name={name} to be new, got an existing directory {path}; choose another run.name, "
                    f"or go on with it: resume={path}"
                ) from error
        except OSError as error:
            raise RunFailed(f"expected to make the run directory {path}, got: {error.strerror}; set run.dir") from error
        else:
            return path
    raise AssertionError("the counts do not end")


def open_existing(resume: str) -> Path:
    """The path of a run to go on with."""
    path = Path(resume).expanduser().resolve()
    if not (path / CONFIG_FILE).is_file():
        raise RunFailed(f"expected resume={resume} to be a run directory with {CONFIG_FILE}, found none there")
    return path


def point_latest(path: Path) -> None:
    """Let `latest` beside the run point to it, in one atomic rename; a directory of that name is left, and said."""
    link = path.parent / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    try:
        link.replace(path.parent / LATEST)
    except OSError as error:
        link.unlink()
        print(f"{path.parent / LATEST} does not point to this run: {error.strerror}", file=sys.stderr)
