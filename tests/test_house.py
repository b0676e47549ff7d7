"""The house itself: what imports what, and what continuous integration checks."""

import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports within functions and for types alone count as well."""
    graph = grimp.build_graph("capo_ray", cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(list(TopologicalSorter(imported).static_order())) == len(imported) > 200  # raises CycleError


def test_ci_runs_all_that_make_check_runs_and_every_test() -> None:
    def commands(*targets: str) -> list[str]:
        made = ["make", "--dry-run", "--old-file=.venv/.installed", *targets]
        return subprocess.run(
            made, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        ).stdout.splitlines()

    targets = re.findall(r"^(?:exec )?make (\w+)", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    ci = [line for target in targets for line in commands(target)]
    *checks, fast = commands("check")
    assert [line.split()[0].rpartition("/")[2] for line in checks] == ["ruff", "ruff", "mypy", "lint-imports"]
    assert set(checks) < set(ci)
    assert "pytest -m" in fast and fast not in ci, "the fast tests run once, among all"
    (tests,) = (line for line in ci if "pytest" in line)
    assert "-m pytest -n 2" in tests and '-m "' not in tests
