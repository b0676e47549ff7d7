"""Settings of all tests."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# Before torch is imported. Two threads for a model of a million weights wait for each other longer than they work: on a
# busy machine a second of work took four minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A property may take long on a machine that is busy with something else: only what it says counts.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")


@pytest.fixture(autouse=True)
def hub_as_a_user_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in this process switches the hub off for as long as the process lives; later tests are other users."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


class RealApart(LoadScopeScheduling):
    """The files with real tests go to one process, one after another, while another runs the rest.

    Not xdist's own groups: its names of tests do not carry them under this pytest.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = self.config.rootpath / nodeid.split("::")[0]
        return "real" if _is_real(file) else nodeid


@cache
def _is_real(file: Path) -> bool:
    return "mark.real" in file.read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RealApart | None:
    """With `--dist loadscope`."""
    return RealApart(config, log) if config.getvalue("dist") == "loadscope" else None
