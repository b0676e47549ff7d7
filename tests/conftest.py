"""Settings of all tests."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.examples import examples
from tests.wheel import shared_wheel

# Before torch is imported. Two threads for a model of a million weights wait for each other longer than they work: on a
# busy machine a second of work took four minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is imported lives on: looking through it for garbage costs a quarter of the imports' time.
gc.disable()

# A property may take long on a machine that is busy with something else: only what it says counts.
settings.register_profile("any_machine", deadline=None, max_examples=examples(100))
settings.load_profile("any_machine")


def pytest_collection_finish() -> None:
    """Everything is imported: from here on garbage is collected, among what the tests make alone."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def hub_as_a_user_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine in this process switches the hub off for as long as the process lives; later tests are other users."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture(autouse=True)
def no_ray_by_accident(request: pytest.FixtureRequest) -> Iterator[None]:
    """`remote` starts a cluster where there is none, and a later test would find it: the one who did it is to fail."""
    before = ray_runs()
    yield
    if not before and request.node.get_closest_marker("real") is None and ray_runs():
        sys.modules["ray"].shutdown()
        pytest.fail("this test is not marked real, and left Ray running")


def ray_runs() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of random weights for learners, over the `VOCAB` tokens of their batches."""
    from benchmarks.tiny import write_tiny_model
    from tests.learner_group import VOCAB

    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path, vocab=[chr(0x100 + i) for i in range(VOCAB - 3)], init_scale=3.0)
    return path


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A cluster of this process's own, for actors that ask for little."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout; `site` beside its folder has it installed."""
    folder = tmp_path_factory.getbasetemp()
    return shared_wheel((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "wheel")


@pytest.fixture(scope="session")
def site(wheel: Path) -> Path:
    """Where the wheel is installed, far from the checkout."""
    return wheel.parents[1] / "site"


ROWS = {
    # Learners and their ranks: they compute, and need no engine.
    "learners": [
        "learners",
        "learner_memory",
        "learner_numerics",
        "reward_learner",
        "lora",
        "supervised",
        "moe",
        "rank_pair",
    ],
    # Whole runs, each in processes of its own.
    "runs": ["main_job", "two_nodes", "turns_run", "deploy", "solve", "eval", "stale_engine"],
}
"""Rows of files with real tests; all others of those stand in a third, `engines`, where what an engine imports is
imported once. Those of actors without an engine stand there, too, since they mostly wait."""


class RealApart(LoadScopeScheduling):
    """A row of files with real tests goes to one process, file after file; whoever is through takes the next row, and
    then the other tests.

    Two processes on two cores: a third would use what waits leave, but two ranks that meet at every layer then take up
    to ten times as long, and limits in wall time are passed by tests that did nothing wrong.
    Not xdist's own groups: its names of tests do not carry them under this pytest.
    """

    def _split_scope(self, nodeid: str) -> str:
        return row_of(self.config.rootpath / nodeid.split("::")[0]) or nodeid


@cache
def row_of(file: Path) -> str:
    """Which row a file stands in; nothing for one without real tests: those fill the gaps, one by one."""
    if "mark.real" not in file.read_text():
        return ""
    return next((row for row, stems in ROWS.items() if file.stem.removeprefix("test_") in stems), "engines")


class Busy:
    """How long each process of xdist had which tests to run: both end together where the rows are well shared out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._spent: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called in the process that hands the tests out, which alone knows who ran them."""
        if (node := getattr(report, "node", None)) is not None:
            row = row_of(self._root / report.nodeid.split("::")[0]) or "others"
            self._spent.setdefault(node.gateway.id, Counter())[row] += report.duration

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for name, rows in sorted(self._spent.items()):
            told = ", ".join(f"{row} {spent:.0f} s" for row, spent in rows.items())
            terminalreporter.write_line(f"{name} was busy for {rows.total():.0f} s: {told}")


def pytest_configure(config: pytest.Config) -> None:
    """With `--dist loadscope`."""
    if config.getvalue("dist") == "loadscope":
        config.pluginmanager.register(Busy(config.rootpath))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RealApart | None:
    """With `--dist loadscope`."""
    return RealApart(config, log) if config.getvalue("dist") == "loadscope" else None
