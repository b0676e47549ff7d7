"""A trial of a benchmark leaves the published record alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(("words", "folder"), [([], "outputs/benchmarks"), (["--record"], str(BENCHMARKS / "results"))])
def test_a_record_is_replaced_where_it_is_asked_for_alone(words: list[str], folder: str, tmp_path: Path) -> None:
    code = "import sys; from records import record; print(record('votes.json'), *sys.argv[1:])"
    asked = [sys.executable, "-c", code, *words, "--repeats=1"]
    done = subprocess.run(asked, cwd=tmp_path, env={"PYTHONPATH": str(BENCHMARKS)}, capture_output=True, text=True)
    assert done.stdout.split() == [f"{folder}/votes.json", "--repeats=1"]


def test_no_benchmark_writes_into_the_records_by_itself() -> None:
    own = re.compile(r'__file__\)\.parent / "results"|ROOT / "results"|"benchmarks/results')
    # learning.py continues its record, which it is told to by --results.
    found = [path.name for path in BENCHMARKS.glob("*.py") if own.search(path.read_text())]
    assert sorted(found) == ["learning.py", "records.py"]
