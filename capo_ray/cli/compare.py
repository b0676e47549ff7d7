"""`capo-ray compare A B`: which settings differ, and the curves at equal updates, with the tokens and seconds spent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from capo_ray.cli.runs import show, to_table
from capo_ray.cli.view import check_runs
from capo_ray.view.comparing import compare

HELP = "set runs side by side: the settings that differ, held-out accuracy at equal updates, tokens and seconds"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="two or more run directories")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 when they were set side by side."""
    found = compare(check_runs(args.runs))
    print(json.dumps(found, indent=2) if args.json else _to_text(found))
    return 0


def _to_text(found: dict[str, Any]) -> str:
    names = [line["run"] for line in found["runs"]]
    lines = [to_table(found["runs"]), "", "settings that differ" if found["keys"] else "no setting differs"]
    lines += [
        f"  {key}: {'  |  '.join(json.dumps(value) for value in values)}" for key, values in found["keys"].items()
    ]
    lines += ["", "held-out accuracy (seconds, thousands of sampled tokens) at equal updates"]
    width = max(26, *map(len, names))
    lines.append(f"{'update':>8}  " + "  ".join(name.ljust(width) for name in names))
    for point in found["curve"]:
        cells = [_cell(one) for one in point["runs"]]
        lines.append(f"{point['update']:>8}  " + "  ".join(cell.ljust(width) for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _cell(point: dict[str, Any] | None) -> str:
    if point is None:
        return "–"
    tokens = None if point["tokens"] is None else point["tokens"] / 1000
    return f"{show(point['accuracy'])} ({show(point['seconds'], 0)} s, {show(tokens, 0)} k)"
