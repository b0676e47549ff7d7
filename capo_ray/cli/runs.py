"""`capo-ray runs` lists the runs of a directory with their outcome."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from capo_ray.cli.schema import ConfigError
from capo_ray.runs.comparing import line_of
from capo_ray.runs.reading import NoRun, Run

HELP = "list the runs of a directory with their outcome, the newest first"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and the example."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "example:\n  capo-ray runs\n  capo-ray runs /data/runs --json"
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
    if not lines:
        return "no runs"
    head = ("run", "status", "method", "updates", "held-out accuracy", "seconds")
    body = [
        (
            line["run"],
            line["status"],
            line["method"],
            str(line["updates"]),
            f"{show(line['first_accuracy'])} → {show(line['last_accuracy'])}",
            show(line["seconds"], 0),
        )
        for line in lines
    ]
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *body))


def show(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"
