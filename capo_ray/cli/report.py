"""`capo-ray report RUN -o report.html`: the pages of a run as one file to send around."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from capo_ray.cli.overrides import output_path
from capo_ray.cli.schema import ConfigError
from capo_ray.cli.view import check_runs
from capo_ray.runs.files import replace_whole

HELP = "write the pages of a run, or of several, as one HTML file that needs no server"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and the example."""
    parser.epilog = (
        "example:\n  capo-ray report runs/latest -o report.html\n  capo-ray report runs/a --compare runs/b -o ab.html"
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory")
    parser.add_argument("--compare", metavar="OTHER", type=Path, nargs="+", default=[], help="runs to set beside it")
    parser.add_argument("-o", "--output", metavar="FILE", type=output_path, required=True, help="the file to write")
    parser.add_argument("--json", action="store_true", help="print one JSON object: the file, its bytes, its runs")
    parser.add_argument("--groups", type=int, default=24, help="groups of each run that it holds (default 24)")


def run(args: argparse.Namespace) -> int:
    """0 when the file is written."""
    from capo_ray.view.report import build_report

    runs = check_runs([args.run, *args.compare])
    if not 0 <= args.groups <= 1000:
        raise ConfigError(f"--groups: expected 0 to 1000, got {args.groups}")
    page = build_report(runs, args.groups).encode()
    try:
        replace_whole(args.output, page)
    except OSError as error:
        raise ConfigError(f"--output: expected to write {args.output}, got: {error.strerror}") from None
    told = {"output": str(args.output), "bytes": len(page), "runs": [str(run.path) for run in runs]}
    print(json.dumps(told) if args.json else f"{args.output}: {len(page) / 1e6:.1f} MB")
    return 0
