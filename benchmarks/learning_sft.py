"""The novice's critic as a teacher: what the policy learns when the labels of the critic are taught to it directly.

    make bench NAME=learning_sft                       (15 minutes of a core)

The critic `novice` was taught 1.15M labelled tokens of bare facts (docs/laptop_world.md). Here as many labelled tokens
of the same facts teach the policy itself by `capo-ray sft`, each fact in the policy's own form, and no chain:

    7*8  ->  7*8=6  \\boxed{6}

`facts` are these alone. Beside them every other example can be a chain, so that the policy does not forget what a
chain is: `first_lessons` are those that it was taught before, where the results of the facts that it was never shown
are random; `known_chains` hold no such fact. Accuracy is that of the learning benchmark, on the same held-out chains.
The models are kept under --keep, so that reinforcement can go on from there:

    make bench NAME=learning ARGS="--operations 4 --policy models/taught-facts … --arm 'grpo_taught: credit=grpo …'"
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from learning import ASSETS, prepare
from plain_torch.arms import parse_arm
from plain_torch.run import Run, Settings
from records import record

from capo_ray.engines import HfTokenizer
from capo_ray.problems.chains import apply, demonstrate, draw_chain, is_unlearnt, response_text
from capo_ray.problems.chains_lessons import Lesson, fact_lessons, policy_lessons

POLICY = ASSETS / "novice-policy"
LABELLED_TOKENS = 1_150_000
BATCH = 96
UNLEARNT_FRAC = 0.4
KINDS = ("facts", "known_chains", "first_lessons")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 64, 1 / 16, 1 / 4, 1.0], help="of the tokens")
    parser.add_argument("--lessons", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--operations", type=int, default=4)
    parser.add_argument("--keep", type=Path, default=Path("models"), help="the models of the largest share")
    args = parser.parse_args()
    prepare()
    path = record("learning_sft.json")
    rows = json.loads(path.read_text()) if path.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for lessons in args.lessons:
            for share in args.shares:
                out = args.keep / f"taught-{lessons}" if share == max(args.shares) else Path(folder) / f"{share}"
                rows.append(taught(lessons, share, args.lr, out, args.operations))
                print(json.dumps(rows[-1]), flush=True)
                path.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def bare_facts(seed: int) -> Iterator[Lesson]:
    """The facts that the critic's lessons hold, drawn as they are there, one to an example."""
    rng = random.Random(f"order/{seed}")
    for text, _ in fact_lessons(seed, (2, 8)):
        steps = re.findall(r"\d[-+*]\d=", text)
        rng.shuffle(steps)
        for step in steps:
            result = apply(int(step[0]), step[1], int(step[2]))
            yield step[:-1], f"{step}{result}\n\n\\boxed{{{result}}}"


def known_chains(seed: int) -> Iterator[Lesson]:
    """Right demonstrations of training chains of 2 to 8 operations without a fact that the policy was never shown."""
    rng = random.Random(f"known-chains/{seed}")
    while True:
        length = rng.randint(2, 8)
        steps: tuple[str, ...] = ()
        while not steps or any(is_unlearnt(int(s[0]), s[1], int(s[2]), UNLEARNT_FRAC) for s in steps[:-1]):
            chain = draw_chain(rng, length, "train")
            steps = demonstrate(chain)
        yield chain.prompt, response_text(steps)


def lessons_of(kind: str, seed: int) -> Iterator[Lesson]:
    """Endless (question, solution) pairs."""
    first = policy_lessons(seed + 1, (2, 8), 0.05, UNLEARNT_FRAC)
    chains = {"known_chains": known_chains(seed), "first_lessons": first}.get(kind)
    for fact in bare_facts(seed):
        yield fact
        if chains is not None:
            yield next(chains)


def taught(kind: str, share: float, lr: float, out: Path, operations: int) -> dict[str, Any]:
    """What a share of the labelled tokens makes of the policy, before any reinforcement."""
    tokenizer = HfTokenizer(str(POLICY))
    drawn = lessons_of(kind, 0)
    size = sum(len(tokenizer.encode(solution)) + 1 for _, solution in islice(lessons_of(kind, 0), 2000)) / 2000
    updates = round(share * LABELLED_TOKENS / size / BATCH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lessons.jsonl"
        rows = ({"question": q.strip(), "solution": s} for q, s in islice(drawn, updates * BATCH))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = [
            f"model.path={POLICY}", "data.kind=files", f"data.path={path}", "learner.microbatch_tokens=1024",
            f"learner.lr={lr}", "learner.num_threads=1", f"run.num_updates={updates}", f"batch_size={BATCH}",
            f"run.dir={folder}/runs", f"out={out}", "run.checkpoint_every=1000000",
        ]  # fmt: skip
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "capo_ray", "sft", *words], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"capo-ray sft failed:\n{done.stdout}\n{done.stderr}")
    settings = Settings(operations, str(out), "", 1, 1, eval_problems=128, pass_at=16)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(parse_arm("grpo", "credit=grpo"), 0, settings, Path(folder))
        run.started = time.process_time(), time.monotonic()
        asyncio.run(run.evaluate(0))
    return {
        "lessons": kind, "share": share, "updates": updates, "labelled_tokens": round(updates * BATCH * size), "lr": lr,
        "operations": operations, "wall_s": round(time.monotonic() - began, 1),
        **{key: run.curve[0][key] for key in ("greedy", "accuracy", "pass_at")},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
