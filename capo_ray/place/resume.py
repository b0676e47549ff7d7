"""Going on with a run: what may differ from the run's own settings, and which checkpoint it goes on from.

    fixed      names and shards: never            run.name, run.dir, model.dtype, LoRA, ranks of a reward model
    meaning    what the run is about: only with   model.path, reward_model.path, run.seed, credit.method, data
               run.changes_allowed=[key]
    the rest   taken and recorded                 lr, num_updates, deadlines, …

Everything here is told by small files, in a moment, before any actor is started.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capo_ray.checkpoint import CheckpointStore, read_state
from capo_ray.config import Job, TrainConfig
from capo_ray.config.base import flat_keys
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import LEDGER_FILE, STATE_FILE, SUMMARY_FILE

SESSION_KEYS = ("resume", "run.from_zero", "run.changes_allowed")
"""Keys of one start of a run, not of the run."""
_IDENTITY = ("run.name", "run.dir")
_SHARDS = (
    "model.dtype",
    "learner.lora.rank",
    "learner.lora.alpha",
    "learner.lora.targets",
    "reward_model.num_ranks",
)
_MEANING = ("model.path", "reward_model.path", "run.seed", "credit.method")
_DATA = "data."
_NOT_DATA = ("data.curriculum.", "data.max_bad_rows")
FILES = ("data.path", "data.eval_path")

Changes = dict[str, tuple[Any, Any]]


def changed_keys(own: Job, asked: Job) -> Changes:
    """(own value, asked value) of every key that differs, those of one start left out."""
    before, after = (flat_keys(config.model_dump(mode="json")) for config in (own, asked))
    keys = [key for key in dict.fromkeys([*before, *after]) if key not in SESSION_KEYS]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def require_same_run(changes: Changes, asked: Job, digests: tuple[Mapping[str, str], Mapping[str, str]]) -> None:
    """Raises `RunFailed` for a change that the run would ignore, or that makes it another one, unless it is allowed.

    `digests` are the sha256 of the data files by key, as the run began and now: a file may move, not change.
    """
    for key in (*_IDENTITY, *_SHARDS):
        if key in changes:
            own, got = changes[key]
            why = "names the run in its ledger" if key in _IDENTITY else "is how its checkpoints are cut"
            way = (
                "leave it out" if key in _IDENTITY else "leave it out, or export the policy and start a new run from it"
            )
            raise RunFailed(f"expected {key}={own} as in {asked.resume}, which {why} (got {got}); {way}")
    allowed = set(asked.run.changes_allowed)
    began, now = digests
    different = [key for key in changes if key in _MEANING or _is_data(key)]
    different = [key for key in different if not (key in FILES and began.get(key, "") == now.get(key))]
    for key in different:
        if key not in allowed:
            own, got = changes[key]
            raise RunFailed(
                f"expected {key}={own} as in {asked.resume} (got {got}): with another one it would not be the same "
                f"run; leave it out, or take it on purpose with run.changes_allowed=[{key}]"
            )
    for key in FILES:
        if key not in changes and began.get(key) != now.get(key) and key not in allowed:
            raise RunFailed(
                f"expected {key} to hold what it held when {asked.resume} began (sha256 {began.get(key)}, now "
                f"{now.get(key)}); put the file back, or take it on purpose with run.changes_allowed=[{key}]"
            )
    contents = [key for key in FILES if began.get(key) != now.get(key)]
    if idle := sorted(allowed - set(different) - set(contents)):
        raise RunFailed(
            f"run.changes_allowed names {', '.join(idle)}, where nothing differs that needs it; leave it out"
        )


def require_something_to_do(config: Job, run_dir: Path, checkpoints: CheckpointStore) -> None:
    """Raises `RunFailed` for a run that is finished, or of which no checkpoint is left to go on from."""
    path = checkpoints.likely()
    if path is None:
        if config.run.from_zero:
            return
        raise RunFailed(
            f"expected a whole checkpoint in {checkpoints.directory}, found {_what_is_there(checkpoints)}; nothing was "
            f"changed: see that the directory is mounted, or start again from update 0 with run.from_zero=true"
        )
    if config.run.from_zero:
        raise RunFailed(f"run.from_zero=true is for a run without a whole checkpoint, but {path} is one; leave it out")
    if isinstance(config, TrainConfig) and not (run_dir / LEDGER_FILE).is_file():
        raise RunFailed(
            f"expected the ledger {run_dir / LEDGER_FILE} beside {path}, found none: what was trained would be "
            f"forgotten; put it back"
        )
    version = int(read_state(path / STATE_FILE)["version"])
    if version >= config.run.num_updates and _summarised(run_dir) == version:
        raise RunFailed(
            f"expected updates left to do, got a run that has done {version} of run.num_updates="
            f"{config.run.num_updates} and is summed up; raise run.num_updates to go on"
        )


def _what_is_there(checkpoints: CheckpointStore) -> str:
    versions = checkpoints.versions()
    return f"{len(versions)} that are not whole ({', '.join(f'v{v:06d}' for v in versions)})" if versions else "none"


def _summarised(run_dir: Path) -> int | None:
    """The updates that the run's summary counts, if it has one."""
    path = run_dir / SUMMARY_FILE
    return int(read_state(path).get("updates", -1)) if path.is_file() else None


def _is_data(key: str) -> bool:
    return key.startswith(_DATA) and not key.startswith(_NOT_DATA)
