"""B13, learning: accuracy against problems seen and against total compute, credit methods beside their controls.

    make bench NAME=learning ARGS="--operations 8 --seeds 5"
    make bench NAME=learning ARGS="--plot"                       the figures in docs/ and the table, from what has run

One process, no Ray and no vLLM: the project's own steps, votes, critique parser, credit rules, loss weights and loss,
around a small Qwen3 on bare tensors (`plain_torch/`, compared with transformers at every start). Each finished run is
one line of benchmarks/results/learning.jsonl, and a run that is there is not run again. Arms are interleaved by seed;
all see the same problems, and the same held-out ones, in the same order.

One setting for all arms: 16 problems x 8 responses an update, temperature 1, 1 pass, constant lr 1e-4, no KL term, Adam
(0.9, 0.95), gradient norm 1. Groups without credit are left out of the batch and not replaced. The main job's own
setting, fewer responses and more passes over them, is `--groups 8 --epochs 4 --updates 30 --eval-every 3`.

Chains of 8 operations run on the two shipped checkpoints. Longer ones need a policy of their own, and those of more
than 16 a critic too (2, 3 and twice 12 minutes of a core; the step tags of the laptop critic end at 31, so 31
operations and the box):

    A=capo_ray/assets; P="capo-ray sft --recipe $A/chains-policy/recipe.json learning_rate=1.5e-3"
    C="capo-ray sft --recipe $A/chains-critic/recipe.json learning_rate=1e-3"
    $P model.path=$A/chains-policy out=models/policy-16 data.max_steps=16 num_updates=300
    $P model.path=models/policy-16 out=models/policy-32 data.min_steps=4 data.max_steps=32 num_updates=350 batch_size=48
    $C model.path=$A/chains-critic out=models/critic-24 data.min_steps=4 data.max_steps=31 num_updates=700
    $C model.path=models/critic-24 out=models/critic-32 data.min_steps=16 data.max_steps=31 num_updates=600
    make bench NAME=learning ARGS="--operations 16 --policy models/policy-16"
    make bench NAME=learning ARGS="--operations 31 --policy models/policy-32 --critic models/critic-32"
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from plain_torch.arms import ARMS, MAIN_ARMS
from plain_torch.model import Model, check_against_library
from plain_torch.report import draw, fill, titled
from plain_torch.run import Settings, record

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "learning.jsonl"
ASSETS = ROOT.parent / "capo_ray" / "assets"
LENGTHS = {8: (100, 60, 5), 16: (160, 64, 8), 31: (200, 48, 8)}
"""operations -> updates of GRPO, of every other arm, and between evaluations

The others run for the share of GRPO's updates in which CAPO should reach its last accuracy: 0.6, 0.4 and 0.25.
"""


def main() -> int:
    args = parse()
    rows = read()
    if not args.plot:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        for path in {args.policy, args.critic}:
            print(f"{path}: largest difference of logits from transformers {check_against_library(Model(path)):.1e}")
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for arm in args.arms:
                rows += run_once(arm, seed, settings_of(args, arm), rows)
    shown = [row for row in rows if row["seed"] in args.show_seeds] if args.show_seeds else rows
    for title, table in titled(shown).items():
        print(f"\n{title}\n\n{table}")
    if args.plot:
        draw(rows, ROOT.parent / "docs")
        fill(ROOT.parent / "docs" / "methods.md", rows)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=8, help="operations per chain")
    parser.add_argument("--policy", default=str(ASSETS / "chains-policy"), help="model directory")
    parser.add_argument("--critic", default=str(ASSETS / "chains-critic"), help="model directory")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", default=list(MAIN_ARMS), choices=sorted(ARMS), metavar="ARM")
    parser.add_argument("--updates", type=int, default=0, help="0: as many as the length asks for")
    parser.add_argument("--eval-every", type=int, default=0)
    parser.add_argument("--eval-problems", type=int, default=256)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1, help="passes over a batch")
    parser.add_argument("--show-seeds", type=int, nargs="+", metavar="SEED", help="print these seeds alone")
    parser.add_argument(
        "--plot", action="store_true", help="print what has run, draw it and put its tables on docs/methods.md"
    )
    return parser.parse_args()


def settings_of(args: argparse.Namespace, arm: str) -> Settings:
    """The settings of one arm in a comparison."""
    of_grpo, of_others, every = LENGTHS.get(args.operations, LENGTHS[31])
    updates = of_grpo if arm == "grpo" else of_others
    return Settings(
        operations=args.operations,
        policy=args.policy,
        critic=args.critic,
        num_updates=args.updates or updates,
        eval_every=args.eval_every or every,
        groups=args.groups,
        group_size=args.group_size,
        num_epochs=args.epochs,
        eval_problems=args.eval_problems,
    )


def read() -> list[dict[str, Any]]:
    """All finished runs."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run_once(arm: str, seed: int, settings: Settings, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The new record, appended to the results, or nothing where it is there already."""
    wanted = facts_of(arm, settings)
    if any((r["arm"], r["seed"], r["settings"]) == (arm, seed, wanted) for r in rows):
        return []
    row = {**record(arm, seed, settings), "settings": wanted, "cores": os.cpu_count()}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    curve = " ".join(f"{point['accuracy']:.2f}" for point in row["curve"])
    print(f"{settings.operations:>2} {arm:<18} seed {seed}: {curve}   {row['curve'][-1]['cpu_s']:.0f} s", flush=True)
    return [row]


def facts_of(arm: str, settings: Settings) -> dict[str, Any]:
    """The settings as recorded: the last part of each path alone, and the critic only where the arm reads one."""
    critic = Path(settings.critic).name if "critic" in ARMS[arm].uses else None
    return {**asdict(settings), "policy": Path(settings.policy).name, "critic": critic}


if __name__ == "__main__":
    sys.exit(main())
