"""`capo-ray train`: compose, check, then run; or only tell what would run."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from capo_ray.cli.compose import GROUPS, compose_train, list_choices, overruled
from capo_ray.cli.overrides import add_config, all_overrides, split
from capo_ray.config import TrainConfig
from capo_ray.config.sections import verifier_kinds
from capo_ray.imports import unwatched

HELP = """train a policy with reinforcement learning and step-level credit

Overrides are group=choice (credit=grpo), key=value (learner.lr=1e-5, no + needed), and resume=RUN.
A model or critic is a choice, a Hugging Face directory or a hub name (model=/any/directory).
--config FILE holds the same as YAML (sections and their keys, as a run's config.yaml); overrides go on top."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and the choices that exist."""
    parser.add_argument("overrides", nargs="*", metavar="override", help="group=choice or key=value")
    add_config(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print batch, placement, memory and time, check the settings; start nothing",
    )
    # An option of its own to argparse, so that --dry-run never takes the override behind it for its value.
    parser.add_argument(
        "--full", "--dry-run=full", dest="full", action="store_true", help="a dry run with the whole configuration"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: the plan as JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help="with --dry-run: try out model files, judge, disks and ports; tell the cost",
    )
    parser.add_argument("--price", type=float, metavar="X", help="with --check: what one GPU costs for an hour")
    named = {group: list_choices(group) for group in GROUPS} | {"verifier.kind": verifier_kinds()}
    choices = [f"  {group:<15}{', '.join(names)}" for group, names in named.items() if names]
    examples = (
        "capo-ray train credit=grpo",
        "capo-ray train credit.vote=intersection critic.num_votes=8",
        "capo-ray train resume=runs/latest run.num_updates=80",
        "capo-ray train model=/any/directory --dry-run",
    )
    more = [f"         {example}" for example in examples]
    parser.epilog = "\n".join(["choices:", *choices, "", str(parser.epilog), *more])


def run(args: argparse.Namespace) -> int:
    """The exit code of the run, or 0 once its plan is printed."""
    if args.json and not (args.dry_run or args.full):
        raise SystemExit("--json belongs to --dry-run; a run's figures are in its metrics.jsonl and summary.json")
    if (args.check or args.price) and not (args.dry_run or args.full):
        raise SystemExit("--check and --price belong to --dry-run; a run looks at the same when it starts")
    overrides = all_overrides(args)
    config = compose_train(overrides)
    for line in [*_given_twice(args.overrides), *overruled(overrides)]:
        print(f"capo-ray train: {line}", file=sys.stderr)
    if args.dry_run or args.full:
        return _tell_plan(config, args)
    train(config)
    return 0


def _tell_plan(config: TrainConfig, args: argparse.Namespace) -> int:
    """0 once the plan is printed and found to fit; 1 where something that was tried out would fail."""
    from capo_ray.cli import checks, plan, probe

    probes = probe.probe(config, args.price) if args.check else []
    if args.json:
        told = plan.to_json(config) | ({"probes": [asdict(one) for one in probes]} if args.check else {})
        print(json.dumps(told, indent=2), flush=True)
    else:
        print(plan.to_text(config, full=args.full), flush=True)
        if args.check:
            print(f"\n{probe.to_text(probes)}", flush=True)
    checks.check_plan(config)
    return 1 if any(one.state == "bad" for one in probes) else 0


def train(config: TrainConfig) -> Path:
    """The directory of the finished run, once all that can be looked at beforehand was found right."""
    from capo_ray.cli import checks, settings

    checks.check_train(config)
    settings.check_reachable(config)
    with unwatched():
        from capo_ray.place.train import run as run_training

    return run_training(config)


def _given_twice(overrides: Sequence[str]) -> list[str]:
    """A line for each group or key that stands more than once: the last one counts."""
    settings = [split(text) for text in overrides]
    counts = Counter(setting.key for setting in settings)
    last = {setting.key: setting.text for setting in settings if counts[setting.key] > 1}
    return [f"{key} is given {counts[key]} times; {key}={text} counts" for key, text in last.items()]
