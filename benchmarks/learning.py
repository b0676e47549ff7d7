"""B13, learning: accuracy against problems seen and against total compute, credit methods beside their controls.

    make bench NAME=learning ARGS="--operations 8 --seeds 5"
    make bench NAME=learning ARGS="--plot"                       the figures in docs/ and the table, from what has run
    make bench NAME=learning ARGS="--plot --operations 4 --results benchmarks/results/novice.jsonl"

The shipped `Pipeline`, credit, packing, learner and critics in one process: no Ray and no vLLM, but an engine on bare
tensors (`plain_torch/`, compared with transformers at every start) behind the same doors. An arm is a list of overrides
(`plain_torch/arms.py`), and `--arm "name: overrides"` is another one. Each finished run is one line of
benchmarks/results/learning.jsonl, and a run that is there is not run again. Arms are interleaved by seed; all see the
same problems, and the same held-out ones, answered at temperature 1 and greedily.

One setting for all arms unless their overrides say otherwise: 16 problems x 8 responses an update, temperature 1, one
pass, constant lr 1e-4, no KL term, Adam (0.9, 0.95), gradient norm 1, `stream.max_age=0`. The main job's own setting,
fewer responses and more passes over them, is `--groups 8 --epochs 4 --updates 30 --eval-every 3`. More:

    ARGS="--arms grpo capo_majority --pass-at 64 --eval-problems 512"          pass@1, 4, 16, 64 before and after
    ARGS="--arm 'grpo_fast: credit=grpo learner.lr=3e-4' --arm 'w4: credit=capo credit.w_process=4'"
    ARGS="--policy models/p30 --critic oracle:0.9,0.7"                         or a model directory, or calculator
    ARGS="--set loss.kl_coef=0.01 learner.num_epochs=2"                        for all arms

Chains of 8 operations run on the two shipped checkpoints. Longer ones need a policy of their own, and those of more
than 16 a critic too (2, 3 and twice 12 minutes of a core; the step tags of the laptop critic end at 31, so 31
operations and the box):

    A=capo_ray/assets; N=run.num_updates; P="capo-ray sft --recipe $A/chains-policy/recipe.json learner.lr=1.5e-3"
    C="capo-ray sft --recipe $A/chains-critic/recipe.json learner.lr=1e-3"
    $P model.path=$A/chains-policy out=models/policy-16 data.max_steps=16 $N=300
    $P model.path=models/policy-16 out=models/policy-32 data.min_steps=4 data.max_steps=32 $N=350 batch_size=48
    $C model.path=$A/chains-critic out=models/critic-24 data.min_steps=4 data.max_steps=31 $N=700
    $C model.path=models/critic-24 out=models/critic-32 data.min_steps=16 data.max_steps=31 $N=600
    make bench NAME=learning ARGS="--operations 16 --policy models/policy-16"
    make bench NAME=learning ARGS="--operations 31 --policy models/policy-32 --critic models/critic-32"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_torch import headroom, lengths, tuning
from plain_torch.arms import ARMS, MAIN, Arm, parse_arm
from plain_torch.model import Model, check_against_library
from plain_torch.parts import reads_critiques
from plain_torch.report import draw, draw_passes, fill, pass_table, titled
from plain_torch.run import Settings, record

ROOT = Path(__file__).parent
ASSETS = ROOT.parent / "capo_ray" / "assets"
LENGTHS = {8: (100, 60, 5), 16: (160, 64, 8), 31: (200, 48, 8)}
"""operations -> updates of GRPO, of every other arm, and between evaluations

The others run for the share of GRPO's updates in which CAPO should reach its last accuracy: 0.6, 0.4 and 0.25.
"""


def main() -> int:
    args = parse()
    rows = read(args.results)
    if not (args.plot or args.against):
        prepare()
        for path in {args.policy, args.critic}:
            if Path(path).is_dir():
                print(
                    f"{path}: largest difference of logits from transformers {check_against_library(Model(path)):.1e}"
                )
        arms = [parse_arm(name, ARMS[name]) for name in args.arms]
        arms += [parse_arm(*(part.strip() for part in text.split(":", 1))) for text in args.arm]
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for arm in arms:
                rows += run_once(arm, seed, settings_of(args, arm), rows, args.results)
    shown = [row for row in rows if row["seed"] in args.show_seeds] if args.show_seeds else rows
    for title, table in titled(shown).items():
        print(f"\n{title}\n\n{table}")
    if passes := pass_table(shown):
        print(f"\n{passes}")
    if args.pass_plot:
        draw_passes([row for row in shown if "pass_at" in row["curve"][-1]], args.pass_plot)
    if args.against:
        found = tuning.at_best(tuning.by_setting(headroom.comparable(rows, args.operations)))
        if args.against not in found:
            raise SystemExit(
                f"--against must be one of the arms that have run: {', '.join(sorted(found))} (got {args.against})"
            )
        print(headroom.shares_table(found, args.against))
    elif args.plot and not any(row["arm"] == "grpo" for row in rows):  # GRPO at several rates: a world with headroom
        docs = ROOT.parent / "docs"
        tables = headroom.write(rows, args.operations, docs, ROOT / "results" / "credit_fidelity.json", args.world)
        tables |= lengths.write(rows, docs, args.world)
        print("\n\n".join(f"{title}\n\n{table}" for title, table in tables.items()))
    elif args.plot:
        draw(rows, ROOT.parent / "docs")
        fill(ROOT.parent / "docs", titled(rows))
    return 0


def prepare() -> None:
    """One thread, in which numbers next to nothing are nothing: they would take a hundred times as long."""
    torch.set_num_threads(1)
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # asked for later it would complain of what comes next
    torch.set_flush_denormal(True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=8, help="operations per chain")
    parser.add_argument("--policy", default=str(ASSETS / "chains-policy"), help="model directory")
    parser.add_argument(
        "--critic", default=str(ASSETS / "chains-critic"), help="model directory, calculator or oracle:PRECISION,RECALL"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="*", default=list(MAIN), choices=sorted(ARMS), metavar="ARM")
    parser.add_argument("--arm", action="append", default=[], metavar="'NAME: OVERRIDES'", help="an arm of one's own")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for all arms")
    parser.add_argument("--updates", type=int, default=0, help="0: as many as the length asks for")
    parser.add_argument("--eval-every", type=int, default=0)
    parser.add_argument("--eval-problems", type=int, default=256)
    parser.add_argument("--pass-at", type=int, default=1, help="responses to each held-out problem at both ends")
    parser.add_argument("--pass-plot", type=Path, help="write a plot of pass@k, before and after")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1, help="passes over a batch")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "learning.jsonl", help="where runs are kept")
    parser.add_argument("--show-seeds", type=int, nargs="+", metavar="SEED", help="print these seeds alone")
    parser.add_argument("--plot", action="store_true", help="print what has run, draw it and put its tables into docs/")
    parser.add_argument(
        "--against", default="", metavar="ARM", help="print shares of what this arm spends, of what has run"
    )
    parser.add_argument("--world", default="", help="a word added to the titles of --plot")
    return parser.parse_args()


def settings_of(args: argparse.Namespace, arm: Arm) -> Settings:
    """The settings of one arm in a comparison."""
    of_grpo, of_others, every = LENGTHS.get(args.operations, LENGTHS[31])
    updates = of_grpo if arm.name == "grpo" else of_others
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
        pass_at=args.pass_at,
        overrides=tuple(args.set),
    )


def read(path: Path) -> list[dict[str, Any]]:
    """All finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_once(
    arm: Arm, seed: int, settings: Settings, rows: list[dict[str, Any]], results: Path
) -> list[dict[str, Any]]:
    """The new record, appended to the results, or nothing where it is there already."""
    wanted = facts_of(arm, settings)
    if any((r["arm"], r["seed"], r["settings"]) == (arm.name, seed, wanted) for r in rows):
        return []
    row = {**record(arm, seed, settings, before(wanted, seed, rows)), "settings": wanted, "cores": os.cpu_count()}
    row["weights"] = weights_of(settings, wanted)
    results.parent.mkdir(exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    for kind in ("accuracy", "greedy"):
        curve = " ".join(f"{point[kind]:.2f}" for point in row["curve"])
        print(f"{settings.operations:>2} {arm.name:<18} seed {seed} {kind:<8}: {curve}", flush=True)
    print(f"{'':<28}{row['curve'][-1]['cpu_s']:.0f} s", flush=True)
    return [row]


def before(wanted: dict[str, Any], seed: int, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first point of a curve, which is the policy's and the seed's alone, where another arm has it."""
    asked = ("operations", "policy", "eval_problems", "pass_at")
    for row in rows:
        if row["seed"] == seed and all(row["settings"][key] == wanted[key] for key in asked):
            return {**row["curve"][0], "cpu_s": 0.0, "wall_s": 0.0}
    return None


def facts_of(arm: Arm, settings: Settings) -> dict[str, Any]:
    """The settings as recorded: the last part of each path alone, and the critic only where the arm reads one."""
    critic = Path(settings.critic).name if reads_critiques(arm) and not arm.judge.startswith("oracle:") else None
    facts = {**asdict(settings), "policy": Path(settings.policy).name, "critic": critic, "arm": arm.text}
    return json.loads(json.dumps(facts))


def weights_of(settings: Settings, wanted: dict[str, Any]) -> dict[str, str]:
    """The first digits of the SHA-256 of the models that ran: a directory of the same name may hold others one day."""
    paths = {"policy": Path(settings.policy), "critic": Path(settings.critic)}
    return {
        name: hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()[:12]
        for name, path in paths.items()
        if wanted[name] and path.is_dir()
    }


if __name__ == "__main__":
    sys.exit(main())
