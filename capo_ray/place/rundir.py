"""A run's directory: made once, owned by one driver at a time; what stands in it is named by `runs.layout`."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from capo_ray.checkpoint import CheckpointStore, read_settings, read_state, write_settings, write_state
from capo_ray.config import Job, SftConfig, TrainConfig
from capo_ray.config.steps import move_older
from capo_ray.place import resume
from capo_ray.problems import data_files
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import CHECKPOINTS, CONFIG_FILE, HISTORY_FILE
from capo_ray.written import sha256

LATEST = "latest"
JobT = TypeVar("JobT", TrainConfig, SftConfig)


def open_new(config: JobT) -> tuple[Path, JobT]:
    """A new run directory and the configuration as resolved, which stands in it; `latest` then points to it.

    The resolved `run.name` names the run in its ledger from then on, whatever becomes of the directory's name.
    """
    digests = data_digests(config)
    base = Path(config.run.dir).expanduser().resolve()
    path = _make(base, config)
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": path.name})})
    write_state(path / HISTORY_FILE, {"run_id": uuid.uuid4().hex, "data": digests, "sessions": [_session(0, {})]})
    write_settings(path / CONFIG_FILE, _lasting(config))  # last: a directory with it is a run
    point_latest(path)
    return path, config


def _make(base: Path, config: Job) -> Path:
    """The new directory of a run; without a name, the first that no run of the same second has."""
    kind = config.credit.method if isinstance(config, TrainConfig) else "sft"
    now = f"{time.strftime('%Y%m%d-%H%M%S')}-{kind}"
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


def open_existing(name: str) -> Path:
    """The path of a run to go on with."""
    path = Path(name).expanduser().resolve()
    if not (path / CONFIG_FILE).is_file():
        raise RunFailed(f"expected resume={name} to be a run directory with {CONFIG_FILE}, found none there")
    return path


def own_settings(path: Path) -> Job:
    """The configuration that stands in a run's directory."""
    settings = read_settings(path / CONFIG_FILE)
    try:
        return (TrainConfig if "credit" in settings else SftConfig).model_validate(move_older(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunFailed(f"{path / CONFIG_FILE} is of another version of capo-ray: {where}: {first['msg']}") from error


def checkpoints_of(path: Path, config: Job) -> CheckpointStore:
    """The checkpoints of the run in `path`."""
    history = read_state(path / HISTORY_FILE)
    return CheckpointStore(path / CHECKPOINTS, config.run.keep_checkpoints, str(history["run_id"]))


def require_resumable(path: Path, config: Job) -> resume.Changes:
    """What this session changes of the run's settings; `RunFailed` where it cannot go on so."""
    changes = resume.changed_keys(own_settings(path), config)
    history = read_state(path / HISTORY_FILE)
    resume.require_same_run(changes, config, (history["data"], data_digests(config)))
    resume.require_something_to_do(config, path, checkpoints_of(path, config))
    return changes


def record_session(path: Path, config: Job, changes: resume.Changes, version: int) -> None:
    """Note a session that goes on from `version`; where it changes settings, config.yaml holds them from now on."""
    history = read_state(path / HISTORY_FILE)
    session = _session(version, changes)
    if changes:
        session["config_before"] = f"config.{len(history['sessions'])}.yaml"
        shutil.copyfile(path / CONFIG_FILE, path / session["config_before"])
    history["sessions"].append(session)
    history["data"] = data_digests(config)
    write_state(path / HISTORY_FILE, history)
    if changes:
        write_settings(path / CONFIG_FILE, _lasting(config))


def data_digests(config: Job) -> dict[str, str]:
    """The sha256 of the data files that each key names, one after the other."""
    data = config.data
    if data.kind == "chains":
        return {}
    digests = {}
    named = [("data.path", data.path, data.split)]
    if isinstance(config, TrainConfig):
        named.append(("data.eval_path", config.data.eval_path, config.data.eval_split))
    for key, name, split in named:
        if not name or (data.kind == "hub" and not Path(name).expanduser().exists()):
            continue
        try:
            digests[key] = _digest(data_files(name, split))
        except OSError as error:
            raise RunFailed(f"{key}: expected to read {name}, got: {error.strerror}; check the path") from error
    return digests


def _digest(paths: Sequence[Path]) -> str:
    """The sha256 of the contents of files; of several, that of theirs in order."""
    parts = [sha256(path) for path in paths]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


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


def _session(version: int, changes: resume.Changes) -> dict[str, Any]:
    return {
        "unix_s": round(time.time(), 3),
        "from_version": version,
        "changes": {k: list(v) for k, v in changes.items()},
    }


def _lasting(config: Job) -> dict[str, Any]:
    """The settings without those of one start."""
    tree = config.model_dump(mode="json")
    tree["resume"], tree["run"]["from_zero"], tree["run"]["changes_allowed"] = "", False, []
    return tree
