"""`capo-ray runs` lists the runs of a directory with their outcome."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from capo_ray.cli.critique_table import to_text
from capo_ray.cli.schema import ConfigError
from capo_ray.runs.reading import NoRun, Run
from capo_ray.view.comparing import line_of

HELP = "list the runs of a directory with their outcome, the newest first"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("dir", metavar="DIR", type=Path, nargs="?", default=Path("runs"), help="default: runs")
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def run(args: argparse.Namespace) -> int:
    """0; a directory without runs has none to list."""
    if not args.dir.is_dir():
        raise ConfigError(f"expected a directory of runs, got {args.dir}, which is none; name another")
    found = []
    for path in sorted(args.dir.iterdir(), key=lambda path: path.lstat().st_mtime, reverse=True):
        if path.is_symlink():
            continue
        try:
            found.append(line_of(Run(path)))
        except NoRun:
            continue
    print(json.dumps(found, indent=2) if args.json else to_table(found))
    return 0


def to_table(lines: list[dict[str, Any]]) -> str:
    """A line per run for people."""
    rows = [
        {
            "run": line["run"],
            "status": line["status"],
            "method": line["method"],
            "updates": line["updates"],
            "held-out accuracy": f"{show(line['first_accuracy'])} → {show(line['last_accuracy'])}",
            "seconds": show(line["seconds"], 0),
        }
        for line in lines
    ]
    return to_text(rows) if rows else "no runs"


def show(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"
