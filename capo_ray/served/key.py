"""The key of an API: read where it is used, and in no config, repr, error or pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from capo_ray.config.api import ApiConfig


class Secret:
    """A text that does not show itself."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not sent anywhere: read it where it is used")


def read_key(config: ApiConfig) -> Secret:
    """The API key from its file or environment variable; empty where neither is named. Raises `ValueError`."""
    if config.key_file:
        path = Path(config.key_file).expanduser()
        if not path.is_file():
            raise ValueError(f"{config.section}.key_file must be a file that holds the key (got {path})")
        key = path.read_text(encoding="utf-8").strip()
    elif config.key_env:
        key = os.environ.get(config.key_env, "").strip()
    else:
        return Secret("")
    if not key or not key.isascii() or not key.isprintable():
        source = config.key_file or f"${config.key_env}"
        raise ValueError(
            f"{config.section}: expected a printable key in {source}, got {'something else' if key else 'nothing'}"
        )
    return Secret(key)
