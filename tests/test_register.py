"""The register of metrics: names by the rule, each of them in the code, each of the code's in it; how workers merge."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from capo_ray.metrics.register import METRICS, REGISTER, ROOMS, merge, unregistered
from capo_ray.metrics.units import COUNTED, UNITS
from capo_ray.place.pool import WorkerPool
from scripts.pages.metrics import build_page

ROOT = Path(__file__).parents[1]
REGISTER_FILE = ROOT / "capo_ray" / "metrics" / "register.py"
NO_METRICS = {"n/a", "valid/asked", "text/html", "application/json"}
"""Texts of the package that look like names of metrics."""
WORD = "[a-z][a-z0-9_]*"


@cache
def texts(folder: str) -> list[tuple[Path, str]]:
    """The string constants of the code under a folder; in an f-string `{}` stands for what is put in."""
    return list(_texts(folder))


def _texts(folder: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text()))) if path != REGISTER_FILE else []
        parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                yield path, node.value
            elif isinstance(node, ast.JoinedStr):
                yield path, "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)


def test_names_are_room_quantity_unit() -> None:
    assert len(REGISTER) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(rf"{WORD}/{WORD}_[a-z]+", metric.name), metric.name
        assert metric.unit in UNITS or metric.unit in COUNTED, f"{metric.name}: {metric.unit} is no unit"
        assert metric.meaning.endswith(".") and metric.room in ROOMS
    assert {metric.room for metric in METRICS} == ROOMS.keys()
    assert {metric.unit for metric in METRICS} == {*UNITS, *COUNTED} - {""}, "a unit that no name has"


def test_every_name_in_the_code_is_registered() -> None:
    found = {(path.name, text) for path, text in texts("capo_ray") if re.fullmatch(rf"{WORD}/{WORD}", text)}
    assert len(found) > 100
    assert sorted((file, text) for file, text in found if text not in REGISTER and text not in NO_METRICS) == []


def test_every_name_that_a_reader_looks_for_is_registered() -> None:
    """In tests, benchmarks and pages: a name that was changed in the code stands nowhere by its old name."""
    named = {text for _, text in texts("tests") + texts("benchmarks") if re.fullmatch(rf"{WORD}/{WORD}", text)}
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        named.update(re.findall(rf"`({WORD}/{WORD})`", page.read_text()))
    of_rooms = {name for name in named if name.partition("/")[0] in ROOMS}
    measured_there = {"verifier/slowest_read_s", "critic/precision", "critic/recall", "loss/clipped_frac"}
    old = {"loss/total"}  # benchmarks/same_numbers.py reads runs of other commits
    assert unregistered(of_rooms) == sorted((measured_there | old) & of_rooms)


def test_every_registered_name_is_in_the_code() -> None:
    """As it is, as what an f-string can make, or, of an engine, without the room that its pool gives it."""
    known = {text for _, text in texts("capo_ray")}
    made = [re.escape(t).replace(r"\{\}", WORD) for t in known if "{}" in t and re.search(r"[/_]", t) and " " not in t]
    pattern = re.compile("|".join(made))
    for name in REGISTER:
        bare = name.removeprefix("rollout/")
        assert name in known or bare in known or pattern.fullmatch(name) or pattern.fullmatch(bare), name


def test_workers_merge_by_the_register() -> None:
    assert merge("verifier/checks_total", [3.0, 5.0]) == 8.0
    assert merge("verifier/peak_mib", [70.0, 20.0]) == 70.0, "not the mean of peaks"
    assert merge("rollout/version_updates", [7.0, 8.0]) == 7.0
    assert merge("critic/canary_alarm", [0.0, 1.0]) == 1.0, "one worker's alarm is not averaged away"
    assert merge("rollout/serving_frac", [1.0, 0.0]) == 0.5
    assert merge("somebody/elses", [1.0, 2.0]) == 1.5, "a name that is not known ends no run"


def test_a_pool_merges_what_its_workers_told_with_their_last_ping() -> None:
    pool = WorkerPool("verifier", lambda index: None, 2, start_deadline_s=1.0)  # type: ignore[arg-type, return-value]
    told = ({"verifier/checks_total": 3.0, "verifier/slowest_check_s": 2.0}, {"verifier/checks_total": 4.0})
    for worker, figures in zip(pool._workers.values(), told, strict=True):
        worker.figures = figures
    stats = pool.stats()
    assert stats["verifier/checks_total"] == 7.0 and stats["verifier/slowest_check_s"] == 2.0
    assert unregistered(stats) == []


def test_the_page_of_metrics_is_current() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == build_page(), "docs/metrics.md is out of date: run make docs"


@pytest.mark.parametrize("name", ["critic/agreement_frac", "eval/accuracy_frac", "rollout/reward_mean"])
def test_what_the_picture_of_a_run_reads_is_registered(name: str) -> None:
    assert name in REGISTER and name in (ROOT / "capo_ray" / "metrics" / "plot.py").read_text()
