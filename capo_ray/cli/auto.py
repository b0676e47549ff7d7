"""`resume=auto`: the run that `run.name` names goes on where it has begun, else begins; for jobs that start again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from capo_ray.checkpoint import read_settings
from capo_ray.cli.overrides import Override, Setting, split
from capo_ray.cli.schema import ConfigError
from capo_ray.config import TrainConfig
from capo_ray.config.base import flat_keys
from capo_ray.config.steps import move_older
from capo_ray.runs.layout import CHECKPOINTS, CONFIG_FILE

OF_ONE_START = ("resume", "run.from_zero", "run.changes_allowed", "run.name", "run.dir")


def settle_auto(overrides: Sequence[Override], compose: Callable[[Sequence[Override]], TrainConfig]) -> list[Override]:
    """The overrides with `resume=auto` replaced; what differs from the run's own settings is asked of it as a change.

    So the very line that began a run goes on with it, and a changed line is taken or refused as with resume=RUN.
    """
    given = [split(override) for override in overrides]
    if not any(setting.key == "resume" and setting.text == "auto" for setting in given):
        return list(overrides)
    rest: list[Override] = [setting for setting in given if setting.key != "resume"]
    asked = compose(rest)
    if not asked.run.name:
        raise ConfigError("resume=auto finds its run by run.name, which is empty; add run.name=…")
    folder = Path(asked.run.dir).expanduser() / asked.run.name
    if not (folder / CONFIG_FILE).is_file():
        return rest
    own = flat_keys(TrainConfig.model_validate(move_older(read_settings(folder / CONFIG_FILE))).model_dump(mode="json"))
    now = flat_keys(asked.model_dump(mode="json"))
    if own["credit.method"] != now["credit.method"]:
        before, after = own["credit.method"], now["credit.method"]
        raise ConfigError(
            f"resume=auto: {folder} is a run with credit={before}, got credit={after}; give that, or another run.name"
        )
    settings: list[Override] = [Setting("resume", str(folder))]
    settings += [_of(key, value) for key, value in now.items() if key not in OF_ONE_START and own.get(key) != value]
    if not any((folder / CHECKPOINTS).glob("v*")):  # it ended before its first checkpoint: nothing is given up
        settings.append(Setting("run.from_zero", "true", True))
    return settings


def _of(key: str, value: Any) -> Setting:
    return Setting(key, str(value), value)
