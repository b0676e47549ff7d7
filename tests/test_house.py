"""The house itself: what imports what, and what continuous integration checks."""

import ast
import os
import re
import subprocess
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from capo_ray.runs import layout
from tests.conftest import ROWS, row_of

ROOT = Path(__file__).parents[1]


@cache
def package() -> dict[Path, list[ast.AST]]:
    """The nodes of each file of the package."""
    paths = sorted((ROOT / "capo_ray").rglob("*.py"))
    return {path: list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) for path in paths}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports within functions and for types alone count as well."""
    graph = grimp.build_graph("capo_ray", cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(imported).static_order())) == len(imported) > 200  # raises CycleError


def environment_for_make() -> dict[str, str]:
    """Not as a part of the make that runs these tests, which would hand its own flags and directories on."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


def test_ci_runs_all_that_make_check_runs_and_every_test() -> None:
    def commands(*targets: str) -> list[str]:
        made = ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.installed", *targets]
        done = subprocess.run(
            made, cwd=ROOT, env=environment_for_make(), capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout.splitlines()

    targets = re.findall(r"^(?:exec )?make (\w+)", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    ci = [line for target in targets for line in commands(target)]
    checks, check = commands("lint"), "\n".join(commands("check"))
    assert [line.split()[0].rpartition("/")[2] for line in checks] == ["ruff", "ruff", "mypy", "lint-imports"]
    assert all(line in check for line in checks) and set(checks) < set(ci)
    assert '-m pytest -m "not real and not slow"' in check, "the fast tests, which CI runs once, among all"
    (tests,) = (line for line in ci if "pytest" in line)
    assert "-m pytest -n 2" in tests and '-m "' not in tests
    for row, stems in ROWS.items():
        assert all(row_of(ROOT / "tests" / f"test_{stem}.py") == row for stem in stems), (
            "a file that is gone or not real"
        )


def test_the_names_in_a_runs_directory_stand_in_one_place() -> None:
    names = {value for name, value in vars(layout).items() if name.isupper() and "." in value} | {layout.CHECKPOINTS}
    assert "workers.json" in names and len(names) > 10
    for path, nodes in package().items():
        if path.name != "layout.py":
            texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
            assert not names & texts, f"{path}: import {sorted(names & texts)} from capo_ray.runs.layout"


def test_no_file_of_the_package_passes_300_lines_and_no_function_50() -> None:
    long = []
    for path, nodes in package().items():
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 300:
            long.append(f"{path.relative_to(ROOT)}: {count} lines")
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path.relative_to(ROOT)}: {node.name}, {count} lines"] * (count > 50)
    assert long == []


@pytest.mark.parametrize("failing", ["", "ruff", "mypy", "lint-imports", "python"])
def test_make_check_ends_well_only_where_every_part_of_it_does(tmp_path: Path, failing: str) -> None:
    for name in ("ruff", "mypy", "lint-imports", "python"):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {int(name == failing)}\n")
        (tmp_path / name).chmod(0o755)
    line = ["make", "-s", "-o", "install", "check", f"BIN={tmp_path}", "ARGS="]
    made = subprocess.run(line, cwd=ROOT, env=environment_for_make(), capture_output=True, text=True, timeout=60)
    assert (made.returncode == 0) == (not failing), made.stderr


@pytest.mark.parametrize("failing", ["", "install", "lint", "test"])
def test_ci_ends_well_only_where_every_part_of_it_does(tmp_path: Path, failing: str) -> None:
    (tmp_path / "make").write_text(f'#!/bin/sh\necho "made $1"\n[ "$1" != "{failing}" ]\n')
    (tmp_path / "chromium").write_text("#!/bin/sh\n")  # or it would be installed
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    made = subprocess.run([ROOT / ".ci" / "run"], env=env, capture_output=True, text=True, timeout=60)
    assert (made.returncode == 0) == (not failing), made.stderr
    assert made.stdout.split() == ["made", "install"] + ["made", "test", "made", "lint"] * (failing != "install")
