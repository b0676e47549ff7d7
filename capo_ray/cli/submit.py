"""`capo-ray submit`: the `ray job submit` line for a training run, printed and run; nothing hidden behind it."""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from capo_ray.cli.compose import compose_train
from capo_ray.cli.settings import reach
from capo_ray.config import TrainConfig
from capo_ray.config.cluster import OWN
from capo_ray.place.ending import END_S
from capo_ray.protocols import RunFailed

HELP = """run `capo-ray train` as a job on a Ray cluster

The overrides are checked here first, then `ray job submit … -- python -m capo_ray train …` is printed and run. The
cluster's own token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) is used by Ray; it is never printed."""
EXCLUDES = (".git", ".venv", "runs", "outputs")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("overrides", nargs="*", metavar="override", help="as for capo-ray train")
    parser.add_argument(
        "--address", default="", help="http://host:8265; without it RAY_API_SERVER_ADDRESS or this node"
    )
    parser.add_argument("--working-dir", default="", help="send this checkout along (needs an absolute run.dir)")
    parser.add_argument("--submission-id", default="", help="name of the job")
    parser.add_argument("--python", default="python", help="interpreter on the cluster that has capo-ray")
    waiting = parser.add_mutually_exclusive_group()
    waiting.add_argument("--follow", action="store_true", help="print the job's log until it ends (the default)")
    waiting.add_argument("--no-wait", action="store_true", help="return once the job is accepted")
    parser.add_argument("--print", action="store_true", help="print the line and do nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object; the log goes to stderr")


def run(args: argparse.Namespace) -> int:
    """The exit code of `ray job submit`: not 0 where the job failed."""
    if args.json:  # so that it can be told: Ray would make one up and say it in the midst of other words
        args.submission_id = args.submission_id or f"capo-ray-{secrets.token_hex(8)}"
    command = build_command(args)
    line = shlex.join(["ray", *command[1:]])
    print(line, file=sys.stderr if args.json else sys.stdout, flush=True)
    code = None if args.print else _submit(args, command)
    if args.json:
        told = {"command": line, "address": _address(args), "submission_id": args.submission_id}
        print(json.dumps(told | {"waited": code is not None and not args.no_wait, "exit_code": code}), flush=True)
    return code or 0


def _address(args: argparse.Namespace) -> str:
    return args.address or os.environ.get("RAY_API_SERVER_ADDRESS", "")


def _submit(args: argparse.Namespace, command: list[str]) -> int:
    """The exit code of the command; with --json its words go to standard error."""
    if not Path(command[0]).is_file():
        raise RunFailed(f"expected Ray's command line at {command[0]}, found none; install with make install")
    if address := _address(args):
        reach(address, "--address", "start the cluster's dashboard, or check the address")
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(command, check=False, env=env, stdout=2 if args.json else None).returncode


def build_command(args: argparse.Namespace) -> list[str]:
    """The words of `ray job submit` for checked overrides."""
    config = compose_train(args.overrides)
    if config.cluster.address == OWN:
        raise RunFailed(
            f"a job's run joins the cluster that it is submitted to, so cluster.address must not be {OWN}; remove "
            "cluster=own, or run capo-ray train itself"
        )
    if args.working_dir and not Path(config.run.dir).is_absolute():
        raise RunFailed(
            f"--working-dir runs the job in a temporary copy, so run.dir must be absolute (got {config.run.dir}); "
            "add run.dir=/shared/runs"
        )
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit"]
    command += ["--address", args.address] if args.address else []
    command += ["--submission-id", args.submission_id] if args.submission_id else []
    command += ["--working-dir", args.working_dir] if args.working_dir else []
    command += ["--runtime-env-json", json.dumps(_runtime_env(config, bool(args.working_dir)))]
    command += ["--no-wait"] if args.no_wait else []
    return [*command, "--", args.python, "-m", "capo_ray", "train", *args.overrides]


def _runtime_env(config: TrainConfig, sends_files: bool) -> dict[str, Any]:
    """What Ray is told of the job: the seconds from `ray job stop` to SIGKILL (3 by default), which files stay here."""
    stop_s = math.ceil(config.run.stop_grace_s + END_S)  # Ray reads whole seconds
    env = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_s)}}
    return env | ({"excludes": list(EXCLUDES)} if sends_files else {})
