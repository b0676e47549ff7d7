"""What credit on quotes adds where reasoning needs one sentence of several: EAPO, its controls, chains in a haystack.

    python benchmarks/evidence.py teach FOLDER             a policy that mostly quotes the wrong sentence (capo-ray sft)
    python benchmarks/evidence.py run ARM SEED FOLDER      one run; a line of results/evidence.jsonl
    python benchmarks/evidence.py table FILE               the table of docs/methods.md

The policy is the laptop's. It learns to copy the sentences that a question names by their numbers, in that order, and
to reason from the last; then to copy one. A fifth of its lessons are the answer alone behind one sentence, without
which its likelihood would say nothing. Then it gets bad habits: it quotes the first sentence, seldom the one that is
asked for, and reasons carelessly. So it is mostly wrong, and now and then right by luck. (To look a sentence up by its
name, as `data=haystack` asks, was too much for it.) The pipeline, credit, evidence and learner are the shipped ones,
the engine is on bare tensors.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from string import ascii_lowercase
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from plain_torch.engine import PlainEngine
from plain_torch.learner import PlainLearner, PlainRewardModel
from turns import Watcher, supervise

from capo_ray.checkpoint import CheckpointStore
from capo_ray.cli.compose import compose_train
from capo_ray.config.credit import EvidenceScore, TokenRewards
from capo_ray.evaluation import estimate
from capo_ray.evidence.quotes import QuoteSource
from capo_ray.flow import Parts, Pipeline
from capo_ray.flow.direct import Direct
from capo_ray.flow.state import RunState
from capo_ray.ledger import SqliteLedger
from capo_ray.problems.chains import demonstrate, parse_chain, response_text
from capo_ray.problems.haystack import HaystackSource, make_problem
from capo_ray.problems.sources import ProblemSet
from capo_ray.steps.quotes import block_end, needed, number_sentences, quote, read_context
from capo_ray.types import Evidence, Judged, Problem
from capo_ray.verifiers import VerifierPool

SIZE = 4
WORLD = f"data.haystack_size={SIZE} data.chain_steps=1 rollout.max_response_tokens=64 verifier.kind=exact"
ARMS = {
    "eapo": "credit=eapo",
    "shuffled": "credit=eapo",  # each response is given the score of another
    "format": "credit=eapo credit.w_evidence=0",
    "learned": "credit=eapo credit.scorer=learned reward_model.lr=2e-4 reward_model.num_epochs=2 "
    "reward_model.stop_drop=0.1",
    "grpo": "credit=grpo data=haystack loss.kl_coef=0.01",  # as the others'
}
SHARED = (
    "learner.backend=torch stream.max_age=0 rollout.group_size=8 learner.groups_per_batch=8 learner.num_epochs=2 "
    "learner.lr=2e-4 learner.schedule=constant run.num_updates=16 run.eval_every=8 run.eval_problems=96"
)
FIGURES = {
    "recall": "credit/evidence_recall_frac",
    "precision": "credit/evidence_precision_frac",
    "lucky": "credit/lucky_frac",
    "format": "credit/evidence_format_frac",
    "reward": "rollout/reward_mean",
    "pairs": "reward_model/accuracy_frac",
    "consistent": "reward_model/consistent_frac",
    "stopped": "reward_model/accuracy_alarm",
}
CURVES = {"greedy": "greedy_accuracy_frac", "sampled": "accuracy_frac"}
QUARTERED = ("recall", "precision", "lucky")
NUM_LESSONS = 12000
HELD_OUT_SEED = 10**6  # of no run
LESSONS = (("several", 400), ("one", 150), ("habits", 250))
"""One after another, and their updates."""
ANSWER_FRAC, FIRST_FRAC, ASKED_FRAC, SLIP_FRAC = 0.2, 0.5, 0.2, 0.2


class ByNumber(HaystackSource):
    """Problems whose sentence is asked for by its number."""

    def next_problem(self, progress: float = 0.0) -> Problem:
        return by_number(super().next_problem(progress))


def by_number(problem: Problem) -> Problem:
    """`?b` as `?2`, and the sentences named in order, `[1] a:…`: a policy that need not look at names copies none."""
    sentences, _ = read_context(problem.prompt)
    (asked,), solution = needed(problem.prompt, problem.solution), problem.solution or ""
    named = [f"{ascii_lowercase[i]}:{one.partition(':')[2]}" for i, one in enumerate(sentences)]
    told = quote(named, [asked]) + solution[block_end(solution) :]
    return replace(problem, prompt=f"{number_sentences(named)}?{asked}", solution=told)


def world(seed: int) -> ProblemSet:
    """The problems of a run; those held out are other contexts of the same facts, of which a chain of one has 300."""
    return ProblemSet(
        ByNumber(1, SIZE, seed), lambda n: [by_number(make_problem(HELD_OUT_SEED, i, 1, SIZE)) for i in range(n)]
    )


class Shuffled(QuoteSource):
    """What each response quotes is held worth what another's is."""

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence]:
        """The scores, moved on by one member."""
        found = list(await super().gather(problem, members, progress))
        return [*found[1:], *found[:1]]


def lesson(problem: Problem, stage: str, rng: random.Random) -> tuple[str, str]:
    """A question and what is to be said."""
    sentences, rest = read_context(problem.prompt)
    (asked,) = needed(problem.prompt, problem.solution)
    if rng.random() < ANSWER_FRAC:
        return number_sentences([sentences[asked - 1]], [asked]) + rest, f"\\boxed{{{problem.answer}}}"
    told, question, draw = [asked], problem.prompt, rng.random()
    if stage == "several":
        told = rng.sample(range(1, SIZE + 1), rng.randint(1, SIZE))
        question = number_sentences(sentences) + "?" + "".join(map(str, told))
    elif stage == "habits" and draw >= ASKED_FRAC:
        told = [1 if draw < ASKED_FRAC + FIRST_FRAC else rng.randint(1, SIZE)]
    slip_frac = SLIP_FRAC if stage == "habits" else 0.0
    return question, quote(sentences, told) + reasoning(sentences[told[-1] - 1], rng, slip_frac)


def reasoning(sentence: str, rng: random.Random, slip_frac: float) -> str:
    """The steps of a sentence's chain, a result now and then drawn anew."""
    return response_text(demonstrate(parse_chain(sentence.partition(":")[2]), rng, slip_frac))


def teach(folder: Path) -> None:
    """The policy that mostly fails, in `folder`; beside it those of the stages before."""
    rng, problems, model = random.Random("lessons"), ByNumber(1, SIZE, 1), "laptop"
    with tempfile.TemporaryDirectory() as scratch:
        for stage, num_updates in LESSONS:
            out = folder if stage == "habits" else folder.with_name(f"{folder.name}-{stage}")
            if not out.exists():
                lessons = [lesson(problems.next_problem(), stage, rng) for _ in range(NUM_LESSONS)]
                words = f"run.num_updates={num_updates} batch_size=32 max_tokens=192"
                supervise(lessons, model, out, words, Path(scratch))
            model = str(out)


class Figures(Watcher):
    """Keeps the figures of each update's batch too."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, float]] = []

    def log(self, metrics: Any, *, update: int) -> None:
        """As the watcher, and those of `FIGURES` that are there."""
        super().log(metrics, update=update)
        if "credit/evidence_recall_frac" in metrics:
            self.batches.append({n: round(metrics[name], 4) for n, name in FIGURES.items() if name in metrics})


def run(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """The figures of one run, update by update."""
    if arm == "shuffled":
        EvidenceScore.source = f"{__name__}:Shuffled"
    config = compose_train([*ARMS[arm].split(), *WORLD.split(), *SHARED.split(), f"model={folder}", f"run.seed={seed}"])
    watcher, started = Figures(), time.time()
    engine, learner = PlainEngine(folder, seed), PlainLearner(config, str(folder))
    asked = config.credit.asked(TokenRewards)
    with tempfile.TemporaryDirectory() as scratch, VerifierPool(config.verifier) as verifier:
        parts = Parts(
            config=config,
            tokenizer=engine.tokenizer,
            problems=world(seed),
            engine=engine,
            verifier=verifier,
            judge=None,
            learner=learner,
            publisher=Direct(learner, engine),
            reward_model=PlainRewardModel(config, str(folder), asked) if asked else None,
            ledger=SqliteLedger(Path(scratch) / "ledger.sqlite", "run"),
            checkpoints=CheckpointStore(Path(scratch) / "checkpoints", 1),
            tracker=watcher,
            transcripts=watcher,
            progress=watcher,
        )
        asyncio.run(Pipeline(parts, RunState()).run())
    seconds = round(time.time() - started)
    told = {"arm": arm, "seed": seed, "seconds": seconds, "curve": watcher.curve, "batches": watcher.batches}
    return {**told, "last": watcher.texts[-1]}


def table(path: Path) -> None:
    """Held-out accuracy and figures of the batches by quarter, means over seeds, and each arm against `grpo`.

    Intervals are 95% bootstraps over seeds; differences are of the same seeds.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    heads = [f"{name} after {point['update']}" for name in CURVES for point in rows[0]["curve"]]
    heads += [f"{name}, quarter {q + 1}" for name in QUARTERED for q in range(4)]
    told = {arm: {row["seed"]: cells(row) for row in rows if row["arm"] == arm} for arm in ARMS}
    for title, against in (("", ""), (" less `grpo`", "grpo")):
        print(f"\n| arm{title} | seeds |", " | ".join(heads), "|\n|" + "---|" * (2 + len(heads)))
        for arm, runs in told.items():
            other = told[against] if against else dict.fromkeys(runs, [0.0] * len(heads))
            seeds = sorted(runs.keys() & other.keys())
            if seeds and arm != against:
                columns = zip(*([x - y for x, y in zip(runs[s], other[s], strict=True)] for s in seeds), strict=True)
                overs = [estimate(list(column), -1.0 if against else 0.0) for column in columns]
                shown = (f"{over.value:.2f} [{over.low:.2f}, {over.high:.2f}]" for over in overs)
                print(f"| `{arm}` | {len(seeds)} |", " | ".join(shown), "|")


def cells(row: dict[str, Any]) -> list[float]:
    """The figures of one run, in the order of the table."""
    curve = [point[key] for key in CURVES.values() for point in row["curve"]]
    size = len(row["batches"]) // 4
    parts = [row["batches"][q * size :][:size] for q in range(4)]
    return curve + [fmean(b[name] for b in part if name in b) for name in QUARTERED for part in parts]


def main() -> None:
    command, *words = sys.argv[1:]
    if command == "teach":
        teach(Path(words[0]))
    elif command == "run":
        import torch

        torch.set_num_threads(1)
        print(json.dumps(run(words[0], int(words[1]), Path(words[2]))), flush=True)
    elif command == "table":
        table(Path(words[0]))
    else:
        raise SystemExit(f"expected teach, run or table, got {command}")


if __name__ == "__main__":
    main()
