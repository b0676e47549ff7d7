"""`capo-ray view RUN …`: the page of a run, or of several, served by this machine until it is ended."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import secrets
import sys
from pathlib import Path

from capo_ray.protocols import RunFailed
from capo_ray.runs.reading import NoRun, Run

HELP = """show a run, or several, in a browser: curves, credit step by step, what another method would have given

The page follows a run that goes on. It is served on this machine alone, to whoever has the token in the address that
is printed; from elsewhere: ssh -L PORT:127.0.0.1:PORT HOST."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and the example."""
    parser.epilog = (
        "example:\n  capo-ray view runs/latest\n  capo-ray view runs/a runs/b --port 8700\n\n"
        "CAPO_RAY_VIEW_TOKEN: a token of your own in place of a new one each time"
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run directories, 8 at most")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="0 (the default): one that is free")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--print-url", action="store_true", help="print the address alone, on a line of its own")
    said.add_argument("--json", action="store_true", help="print one JSON object with it, on a line of its own")


def run(args: argparse.Namespace) -> int:
    """0 when ended; does not return before."""
    from capo_ray.view.server import serve

    runs = check_runs(args.runs)
    if not 0 <= args.port < 1 << 16:
        raise RunFailed(f"--port: expected 0 to 65535, got {args.port}")
    token = os.environ.get("CAPO_RAY_VIEW_TOKEN") or secrets.token_urlsafe(24)
    if not _is_loopback(args.host):
        print(
            f"capo-ray view: served on {args.host} without encryption: who reads the address on the way can read the "
            "run",
            file=sys.stderr,
        )

    def say(url: str) -> None:
        told = json.dumps({"url": url, "token": token, "runs": [str(run.path) for run in runs]})
        words = url if args.print_url else f"the run is shown at {url}\n(Ctrl-C ends it)"
        print(told if args.json else words, flush=True)

    try:
        serve(args.runs, args.host, args.port, token, say)
    except OSError as error:
        raise RunFailed(
            f"expected to serve on {args.host}:{args.port}, got: {error.strerror or error}; choose another --port or "
            "--host"
        ) from None
    return 0


def check_runs(paths: list[Path]) -> list[Run]:
    """The runs; one sentence where something is none, or they are too many."""
    if len(paths) > 8:
        raise RunFailed(f"expected at most 8 runs, got {len(paths)}")
    try:
        return [Run(path) for path in paths]
    except NoRun as error:
        raise RunFailed(str(error)) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
