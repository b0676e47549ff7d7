"""Where a benchmark writes: a file under outputs/benchmarks, or with --record the one that the documentation quotes."""

from __future__ import annotations

import sys
from pathlib import Path

PUBLISHED = Path(__file__).parent / "results"
ASKED = "--record" in sys.argv
if ASKED:  # each benchmark parses the rest in its own way
    sys.argv.remove("--record")


def record(name: str) -> Path:
    """The file of that name."""
    folder = PUBLISHED if ASKED else Path("outputs") / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
