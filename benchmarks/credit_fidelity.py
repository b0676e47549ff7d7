"""B14, credit fidelity: does each method's step credit find the steps that are wrong?

    make bench NAME=credit_fidelity
    make bench NAME=credit_fidelity ARGS="--long-policy models/policy-16"

Chains of 3-8 operations (with a policy for longer ones, 3-12) with planted errors of several kinds. Critics of set
quality and the real small critic, k = 1, 2, 4, 8 votes; the shipped policy's own likelihoods and Monte-Carlo values (9
rollouts per prefix); reward models begun as the policy and trained on 320 groups of its rollouts, as many as a run of
40 updates has. Figures, per method: AUC of the blame within a response and over all steps, precision and recall of the
steps that an update pushes down, rank correlation with value changes across a step, estimated from rollouts of their
own.
Writes credit_fidelity.json and credit-fidelity.png (see records.py). Fails below the goal: AUC 0.95
within responses for CAPO with a critic that is right on 90% of steps, k = 8.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from plain_torch.fidelity import calibration, measure, step_credit
from plain_torch.fidelity_report import draw, show
from plain_torch.planted import GROUP, HalfShared, World
from records import PUBLISHED, record
from scripted import ScriptedJudge, ScriptedSource

from capo_ray.config.credit import CREDIT_METHODS
from capo_ray.config.critic import CriticConfig
from capo_ray.credit import assign_credit
from capo_ray.problems.chains import true_wrong_steps
from capo_ray.protocols import Judge
from capo_ray.types import Group

ROOT = Path(__file__).parent
RESULTS = record("credit_fidelity.json")
ASSETS = ROOT.parent / "capo_ray" / "assets"
VOTE_COUNTS = (1, 2, 4, 8)
GOAL = 0.95
REWARDED = ("prime", "istar", "qrm", "etpo")
NUM_BATCHES, GROUPS_PER_BATCH = 40, 8
BY_CRITIC: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"capo {vote}": ("capo", {"vote": vote}) for vote in ("intersection", "majority", "union", "average", "greedy")},
    "capo majority, W_process 2": ("capo", {"vote": "majority", "w_process": 2.0}),
    "capo majority, separate": ("capo", {"vote": "majority", "normalisation": "separate"}),
    "pure": ("pure", {}),
    "grpo_genorm": ("grpo_genorm", {}),
}
ALL_VOTES = f"critic.early_stop=false critic.num_votes={max(VOTE_COUNTS)}"


def accurate(wrong_frac: float, accuracy: float) -> Judge:
    """A critic that judges each step rightly with probability `accuracy`, wrong steps and right ones."""
    hits = wrong_frac * accuracy
    return scripted(wrong_frac, hits / (hits + (1 - wrong_frac) * (1 - accuracy)), accuracy)


def scripted(wrong_frac: float, precision: float, recall: float) -> Judge:
    """A critic of this precision and recall, each vote's errors its own."""
    source = ScriptedSource(true_wrong_steps, precision=precision, recall=recall, wrong_frac=wrong_frac)
    return ScriptedJudge(source, CriticConfig(rubric="every_step", early_stop=False), vote="majority", quorum=1)


SCRIPTS: dict[str, Callable[[float], Judge]] = {
    "90% of steps": lambda wrong: accurate(wrong, 0.9),
    "90% of steps, half the errors shared": lambda wrong: HalfShared(accurate(wrong, 0.9)),
    "precision 0.9, recall 0.9": lambda wrong: scripted(wrong, 0.9, 0.9),
    "precision 0.9, recall 0.5": lambda wrong: scripted(wrong, 0.9, 0.5),
    "precision 0.5, recall 0.9": lambda wrong: scripted(wrong, 0.5, 0.9),
}


def main() -> int:
    args = parse()
    torch.set_num_threads(1)
    started = time.monotonic()
    worlds = [World(ASSETS / "chains-policy", ASSETS / "chains-critic", range(3, 9), args.per_length)]
    if args.long_policy:
        worlds.append(World(args.long_policy, ASSETS / "chains-critic", range(9, 13), args.per_length))
    rows, bins = compare(worlds)
    record = {
        "cores": os.cpu_count(),
        "seconds": round(time.monotonic() - started),
        "lengths": [length for world in worlds for length in world.lengths],
        "responses": sum(len(g.members) for w in worlds for g in w.groups),
        "steps": sum(len(m.steps) for w in worlds for g in w.groups for m in g.members),
        "methods": rows,
        "calibration": bins,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    show(record)
    draw(record, ROOT.parent / "docs" / "images" if RESULTS.parent == PUBLISHED else RESULTS.parent)
    reached = [r["auc_within"] for r in rows if (r["critic"], r["k"]) == ("90% of steps", 8) and r["method"] in MAIN]
    return 0 if min(reached) >= GOAL else 1


MAIN = ("capo majority", "capo average")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-length", type=int, default=8, help="groups of 8 planted responses per length")
    parser.add_argument("--long-policy", default="", help="model directory for 9-12 operations")
    return parser.parse_args()


def compare(worlds: Sequence[World]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row per method, critic and k; and the calibration of average votes."""

    def gather(text: str, **instead: Any) -> list[Group]:
        return [group for world in worlds for group in world.gather(text, **instead)]

    groups = [g for w in worlds for g in w.groups]
    wrong = [t for w in worlds for t in w.truth]
    # One set of values is VinePPO's evidence, the other the measure: the same set twice would praise its own noise.
    measured = gather("credit=vineppo", seed=1)
    values = [changes(m.evidence.step_values) for g in measured for m in g.members]
    rows, bins = [], []

    def add(method: str, critic: str, k: int, judged: Sequence[Group], name: str, settings: dict[str, Any]) -> None:
        config = CREDIT_METHODS[name](method=name, **settings)
        credits = [assign_credit(group, config) for group in judged]
        credit = step_credit(groups, credits)
        figures = {key: tidy(value) for key, value in measure(credit, wrong, values).items()}
        rows.append({"method": method, "critic": critic, "k": k, **figures, "blamed_by_kind": by_kind(credit, wrong)})
        if method == "capo average":
            table, error = calibration([w for c in credits for w in c.step_weights], wrong)
            bins.append({"critic": critic, "k": k, "ece": tidy(error), "bins": table})

    add("grpo and its family", "-", 0, groups, "grpo", {})
    add("acpo", "-", 0, gather("credit=acpo"), "acpo", {"stage2_from": 1.0})
    add("mig", "-", 0, gather("credit=mig"), "mig", {})
    add("vineppo", "-", 0, gather("credit=vineppo"), "vineppo", {})
    rollouts = [world.roll_out(NUM_BATCHES, GROUPS_PER_BATCH) for world in worlds]
    for name in REWARDED:
        text = f"credit={name}"
        models = [world.train(text, batches) for world, batches in zip(worlds, rollouts, strict=True)]
        judged = [g for w, model in zip(worlds, models, strict=True) for g in w.gather(text, reward_model=model)]
        add(name, "-", 0, judged, name, {})
    rng = random.Random(0)
    noise = [[rng.gauss(0, 1) for _ in m.steps] for g in groups for m in g.members]
    figures = {key: tidy(value) for key, value in measure(noise, wrong, values).items()}
    rows.append({"method": "random", "critic": "-", "k": 0, **figures})
    wrong_frac = sum(map(len, wrong)) / sum(len(m.steps) for g in groups for m in g.members)
    read = f"credit=capo {ALL_VOTES}"
    sources = {name: gather(read, judge=script(wrong_frac)) for name, script in SCRIPTS.items()}
    sources["real"] = gather(read)
    for critic, judged in sources.items():
        for k in VOTE_COUNTS:
            for method, (name, settings) in BY_CRITIC.items():
                if method != "capo greedy":
                    add(method, critic, k, first_votes(judged, k), name, settings)
    add("capo greedy", "real", 1, gather("credit=capo credit.vote=greedy"), "capo", {"vote": "greedy"})
    return rows, bins


def first_votes(groups: Sequence[Group], count: int) -> list[Group]:
    """The groups with the first `count` critiques of each response."""
    return [
        replace(
            group,
            members=tuple(
                replace(m, evidence=replace(m.evidence, critiques=m.evidence.critiques[:count])) for m in group.members
            ),
        )
        for group in groups
    ]


def changes(values: Sequence[float]) -> list[float]:
    """[K]: the change of value across each step."""
    return [after - before for before, after in pairwise(values)]


def by_kind(credit: Sequence[Sequence[float]], wrong: Sequence[frozenset[int]]) -> dict[str, float]:
    """For each kind of response the mean over its wrong steps of the share of its right steps with less blame."""
    shares: dict[str, list[float]] = {}
    for i, (row, bad) in enumerate(zip(credit, wrong, strict=True)):
        right = [x for k, x in enumerate(row) if k not in bad]
        for k in bad:
            order = [1.0 if x > row[k] + 1e-9 else 0.5 if x > row[k] - 1e-9 else 0.0 for x in right]
            shares.setdefault(GROUP[i % len(GROUP)], []).append(sum(order) / len(order))
    return {kind: round(sum(s) / len(s), 3) for kind, s in shares.items()}


def tidy(value: float) -> float | None:
    """Rounded; None where it is not defined."""
    return None if math.isnan(value) else round(value, 4)


if __name__ == "__main__":
    sys.exit(main())
