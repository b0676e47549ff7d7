"""Learning curves of credit methods where an environment replies, calculator and grid, from a policy that fails.

    python benchmarks/turns.py teach WORLD FOLDER             supervised demonstrations (capo-ray sft)
    python benchmarks/turns.py run WORLD METHOD SEED FOLDER   one run; a line of results/turns.jsonl
    python benchmarks/turns.py table FILE                     the table of docs/environments.md

The policy is the laptop's, taught by demonstrations that mostly go wrong: of the calculator most guess the answer or
stop after one call (before that it is shown right ones, from which it learns to copy numbers), of the grid every move
is drawn at random. So greedy decoding fails, and a sample sometimes does not. The pipeline, credit, learner and reward
model are the shipped ones, the engine is on bare tensors, and the environment's function is called in this process,
where the shipped one asks a child. CAPO's judge is told the truth of each turn.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from plain_torch.engine import PlainEngine
from plain_torch.learner import PlainLearner, PlainRewardModel

from capo_ray.checkpoint import CheckpointStore
from capo_ray.cli.compose import compose_train
from capo_ray.config import TrainConfig
from capo_ray.config.credit import Critiques, TokenRewards
from capo_ray.environments import Reply, Task, calculator, grid
from capo_ray.environments.build import build_environment
from capo_ray.environments.reply import rule_of
from capo_ray.evaluation import estimate
from capo_ray.flow import Parts, Pipeline
from capo_ray.flow.direct import Direct
from capo_ray.flow.state import RunState
from capo_ray.ledger import SqliteLedger
from capo_ray.problems import build_problems
from capo_ray.protocols import JudgeRequest
from capo_ray.types import Critique, Problem, Provenance
from capo_ray.verifiers import VerifierPool

WORLDS = {
    "calculator": "environment=calculator environment.max_number=9 environment.max_turns=4 environment.turn_tokens=24 "
    "rollout.max_response_tokens=80 verifier.kind=exact run.num_updates=16 run.eval_every=4",
    "grid": "environment=grid environment.size=3 environment.min_moves=2 environment.most_moves=3 "
    "environment.max_turns=5 environment.turn_tokens=3 rollout.max_response_tokens=80 verifier.kind=exact "
    "run.num_updates=40 run.eval_every=8",
}
METHODS = {
    "grpo": "credit=grpo loss.kl_coef=0.01",  # as the others'
    "capo": "credit=capo critic.max_outcome_only_frac=1 critic.num_votes=1",
    "istar": "credit=istar",
    "etpo": "credit=etpo",
    "gigpo": "credit=gigpo",
    "gigpo, no penalty": "credit=gigpo credit.illegal_penalty=0",
}
SHARED = (
    "steps=turn data=environment learner.backend=torch stream.max_age=0 "
    "rollout.group_size=8 learner.groups_per_batch=8 learner.num_epochs=2 learner.lr=3e-4 learner.schedule=constant "
    "run.eval_problems=128"
)
TURN_END = 'model.stop_tokens=["\n"]'
NUM_DEMONSTRATIONS = 4000
LESSONS = {"calculator": ((1.0, 500), (0.15, 80)), "grid": ((0.0, 250),)}
"""One after another: the share of right demonstrations (of the grid none is made to be right), and updates."""


def demonstrate(world: str, problem: Problem, right_frac: float, settings: dict[str, Any], rng: random.Random) -> str:
    """What a policy is shown of a problem: turns and replies of an episode that fails, but for a share."""
    if world == "grid":
        said: list[str] = []
        text = ""
        for _ in range(5):
            said.append(rng.choice("udlr"))
            reply = grid.reply(Task(problem.id, problem.prompt, "", settings), said)
            text += f"{said[-1]}\n"
            if reply.done:
                return text.rstrip("\n")
            text += f"{reply.text}\n"
        return text.rstrip("\n")
    *calls, right = (problem.solution or "").split("\n")
    value = calculator.calculate(calls[0][5:])
    first = f"{calls[0]}\n{value}\n"
    if rng.random() < right_frac:
        return first + f"{calls[1]}\n{problem.answer}\n{right}"
    return f"\\boxed{{{rng.randint(2, 200)}}}" if rng.random() < 0.7 else first + f"\\boxed{{{value}}}"


def teach(world: str, folder: Path) -> None:
    """The policy that fails, in `folder`."""
    config = compose_train([TURN_END, *WORLDS[world].split(), *SHARED.split()])
    settings, rng = config.environment.model_dump(mode="json"), random.Random(f"demonstrations/{world}")
    problems, model = build_problems(config.data, 1, config.environment).train, "laptop"
    with tempfile.TemporaryDirectory() as scratch:
        for stage, (right_frac, num_updates) in enumerate(LESSONS[world]):
            rows, drawn = [], (problems.next_problem() for _ in range(NUM_DEMONSTRATIONS))
            for problem in drawn:
                rows.append((problem.prompt, demonstrate(world, problem, right_frac, settings, rng)))
            last = stage + 1 == len(LESSONS[world])
            out = folder if last else Path(scratch) / f"stage{stage}"
            supervise(rows, model, out, f"run.num_updates={num_updates} batch_size=48 max_tokens=160", Path(scratch))
            model = str(out)


def supervise(lessons: Sequence[tuple[str, str]], model: str, out: Path, words: str, scratch: Path) -> None:
    """`capo-ray sft` on questions and what is to be said, from one model directory to another; it prints to stderr."""
    rows = scratch / "lessons.jsonl"
    rows.write_text("".join(json.dumps({"question": q, "solution": s}) + "\n" for q, s in lessons))
    told = [f"model.path={model}", "data.kind=jsonl", f"data.path={rows}", "data.question_column=question"]
    told += ["data.solution_column=solution", "learner.lr=2e-3", f"out={out}", f"run.dir={scratch}", *words.split()]
    subprocess.run([sys.executable, "-m", "capo_ray", "sft", *told], check=True, stdout=sys.stderr)


class Inside:
    """The environment's own function, called here."""

    def __init__(self, config: TrainConfig) -> None:
        self._settings, self._rule = config.environment.model_dump(mode="json"), rule_of(config.environment.rule)

    async def ask(self, problem: Problem, said: Sequence[str]) -> Reply | str:
        """As `Children.ask`."""
        return self._rule(Task(problem.id, problem.prompt, problem.answer, self._settings), said)

    def stats(self) -> dict[str, float]:
        """None."""
        return {}


class Truth:
    """A judge that knows which turns are wrong: those that bring the episode no nearer to its end."""

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """One vote a response."""
        wrong = wrong_moves if problem.source == "grid" else wrong_calls
        votes = [(frozenset(wrong(problem, response.steps)), Provenance("truth", "", 0)) for response in responses]
        return tuple((Critique(flagged, not flagged, "", "", where),) for flagged, where in votes)


def wrong_moves(problem: Problem, steps: Sequence[str]) -> list[int]:
    """The moves behind which the shortest way to the goal is no shorter."""
    board, wrong = grid.parse(problem.prompt), []
    for k, step in enumerate(steps):
        after = board.move(step[:1])
        ways = [grid.shortest(one) if one is not None else None for one in (board, after)]
        if ways[1] is None or (ways[0] is not None and len(ways[1]) >= len(ways[0])):
            wrong.append(k)
        board = after or board
    return wrong


def wrong_calls(problem: Problem, steps: Sequence[str]) -> list[int]:
    """The turns that are not those of the solution."""
    right = (problem.solution or "").split("\n")
    said = [step.strip().split("\n")[0] for step in steps]
    return [k for k, text in enumerate(said) if k >= len(right) or text != right[k]]


class Watcher:
    """Tracker, progress and transcripts: what evaluations say is kept, and one response of each update."""

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []
        self.rewards: list[float] = []
        self.texts: list[str] = []

    def log(self, metrics: Any, *, update: int) -> None:
        """Keep the curve."""
        if "eval/accuracy_frac" in metrics:
            told = {
                name.removeprefix("eval/"): metrics[name]
                for name in ("eval/accuracy_frac", "eval/greedy_accuracy_frac")
            }
            self.curve.append({"update": update, **told})
        if "rollout/reward_mean" in metrics:
            self.rewards.append(round(metrics["rollout/reward_mean"], 4))

    def update(self, **figures: Any) -> None:
        """Nothing."""

    def write_group(self, update: int, group: Any, credit: Any, watched: Any) -> None:
        """The first response."""
        self.texts.append(group.members[0].trajectory.response.text)

    def close(self) -> None:
        """Nothing."""


def run(world: str, method: str, seed: int, folder: Path) -> dict[str, Any]:
    """The curve of one run."""
    words = f"{SHARED} {WORLDS[world]} {METHODS[method]} model={folder} run.seed={seed}".split()
    preset = [word for word in words if word.startswith("credit=")]
    config = compose_train([*preset, TURN_END, *(word for word in words if word not in preset)])
    watcher, started = Watcher(), time.time()
    with tempfile.TemporaryDirectory() as scratch, VerifierPool(config.verifier) as verifier:
        asyncio.run(Pipeline(parts_of(config, folder, Path(scratch), verifier, watcher), RunState()).run())
    return {
        "world": world,
        "method": method,
        "seed": seed,
        "seconds": round(time.time() - started),
        "curve": watcher.curve,
        "rewards": watcher.rewards,
        "last": watcher.texts[-1],
    }


def parts_of(config: TrainConfig, folder: Path, scratch: Path, verifier: VerifierPool, watcher: Watcher) -> Parts:
    """The parts of a run."""
    engine, learner = PlainEngine(folder, config.run.seed), PlainLearner(config, str(folder))
    asked = config.credit.asked(TokenRewards)
    return Parts(
        config=config,
        tokenizer=engine.tokenizer,
        problems=build_problems(config.data, config.run.seed, config.environment),
        engine=engine,
        environment=build_environment(config, engine, engine.tokenizer, Inside(config)),
        verifier=verifier,
        judge=Truth() if config.credit.asked(Critiques) else None,
        learner=learner,
        publisher=Direct(learner, engine),
        reward_model=PlainRewardModel(config, str(folder), asked) if asked else None,
        ledger=SqliteLedger(scratch / "ledger.sqlite", "run"),
        checkpoints=CheckpointStore(scratch / "checkpoints", 1),
        tracker=watcher,
        transcripts=watcher,
        progress=watcher,
    )


def table(path: Path) -> None:
    """Sampled accuracy at the start and in the last two evaluations (mean over seeds, 95% bootstrap), and greedily."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print("| world | method | seeds | sampled: start | end | greedy: start, by seed | end, by seed |")
    print("|---|---|---|---|---|---|---|")
    for world, method in dict.fromkeys((row["world"], row["method"]) for row in rows):
        runs = [row for row in rows if (row["world"], row["method"]) == (world, method)]
        cells = []
        for name in ("accuracy_frac", "greedy_accuracy_frac"):
            for part in (slice(0, 1), slice(-2, None)):
                values = [fmean(point[name] for point in row["curve"][part]) for row in runs]
                over = estimate(values)
                by_seed = ", ".join(f"{value:.2f}" for value in values)
                told = f"{over.value:.3f} [{over.low:.3f}, {over.high:.3f}]"
                cells.append(by_seed if name.startswith("greedy") else told)
        print(f"| {world} | {method} | {len(runs)} | {' | '.join(cells)} |")


def main() -> None:
    command, *words = sys.argv[1:]
    if command == "teach":
        teach(words[0], Path(words[1]))
    elif command == "run":
        import torch

        torch.set_num_threads(1)
        print(json.dumps(run(words[0], words[1], int(words[2]), Path(words[3]))), flush=True)
    elif command == "table":
        table(Path(words[0]))
    else:
        raise SystemExit(f"expected teach, run or table, got {command}")


if __name__ == "__main__":
    main()
