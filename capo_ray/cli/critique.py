"""`capo-ray critique`: a critic over a file of solutions; choose critic, rubric, k and vote before paying for a run."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from capo_ray.cli.compose import compose_train
from capo_ray.cli.critique_input import read_input, read_solutions
from capo_ray.cli.critique_layouts import Solution
from capo_ray.cli.critique_table import Judgement, against_truth, by_source, finite, summary, to_text
from capo_ray.config import TrainConfig
from capo_ray.config.credit import CapoConfig, Critiques
from capo_ray.config.sections import CriticConfig
from capo_ray.critics import calculate, parse_critique
from capo_ray.critics.guarded import GuardedStore
from capo_ray.critics.store import StoreHeld
from capo_ray.place.judging import engine_spec, open_judge
from capo_ray.protocols import Judge, JudgeRequest, RunFailed

HELP = "judge the steps of a file of solutions: what a critic, rubric, k and vote are worth, and what they cost"
EXAMPLE = """examples:
  capo-ray critique --input solutions.jsonl critic.backend=calculator
  capo-ray critique --input solutions.jsonl --gold critic=/models/judge critic.rubric=paper critic.num_votes=8
  capo-ray critique --input - --json critic.backend=endpoint critic.endpoint.base_url=https://host/v1 \\
      critic.endpoint.model=judge critic.endpoint.key_file=/run/secrets/key

a line of input: {"question": …, "response": … or "steps": […], "answer"?, "solution"?, "wrong_steps"?: [0-based]}
or a line of ProcessBench, PRM800K, Math-Shepherd, TRL (prompt, completions, labels) or GSM8K's
example_model_solutions.jsonl; also as Parquet, a JSON array, or packed.
exit codes: 0 done; 1 refused, or no critique could be read"""
_PLACE = re.compile(r" at ['\"].*", re.DOTALL)
MAX_OPEN = 64
"""Solutions under way at once."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and the examples."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLE
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as of capo-ray train: critic.…, credit.vote=…, steps=…"
    )
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="solutions, one JSON object per line; - is stdin"
    )
    parser.add_argument("--gold", action="store_true", help="compare with each line's wrong_steps")
    parser.add_argument(
        "--truth", choices=("wrong_steps", "calculator"), default="wrong_steps",
        help="what --gold compares with; calculator: the arithmetic of each line (default: wrong_steps)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="judge the first N solutions only")
    parser.add_argument("--output", metavar="FILE", help="write every critique there, one JSON object per solution")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 when at least one critique could be read."""
    config = compose_train(args.overrides, judges=True)
    # Where the method reads no critiques, they are put together as by the one that a run has by default.
    asked = config.credit.asked(Critiques) or CapoConfig().asked(Critiques)
    assert asked is not None, "CAPO reads critiques"
    vote = asked.vote
    solutions = list(read_solutions(read_input(args.input), config.steps, args.limit))
    if not solutions:
        raise RunFailed(f"--input must hold at least one solution (got none in {args.input})")
    truth = None
    if args.gold:
        if args.truth == "calculator":  # which labels every step
            solutions = [replace(solution, num_labelled=None) for solution in solutions]
        truth = _truth(solutions, args.truth, config.critic)
    # All k votes are wanted here, so that the vote can be taken again for every smaller k.
    critic = config.critic.model_copy(update={"early_stop": False, "canary_every": 0})
    started = time.monotonic()
    judgements = asyncio.run(_judge_all(config, critic, vote, solutions))
    wall_s = time.monotonic() - started
    if args.output:
        _write(args.output, judgements, vote)
    max_k = max(len(j.critiques) for j in judgements)
    figures: dict[str, Any] = {
        "critic": _name(critic),
        "rubric": critic.rubric,
        "vote": vote,
        "summary": finite(summary(judgements, wall_s)),
        "sources": [finite(row) for row in by_source(judgements, vote)],
        "reasons": _reasons(judgements),
    }
    if truth is not None:
        figures["quality"] = [finite(row) for row in against_truth(judgements, truth, max_k)]
    print(json.dumps(figures, indent=2) if args.json else _to_text(figures))
    return 0 if any(c.valid for j in judgements for c in j.critiques) else 1


def _truth(solutions: Sequence[Solution], kind: str, critic: CriticConfig) -> list[frozenset[int] | None]:
    """The wrong steps of each solution, None where they are not known."""
    if kind == "calculator":
        modulus = critic.calculator_modulus
        truth = [parse_critique(calculate(s.steps, modulus), len(s.steps))[0] for s in solutions]
    else:
        truth = [s.wrong for s in solutions]
    if not any(t is not None for t in truth):
        raise RunFailed('--gold needs "wrong_steps" in the input (got none); or compare with --truth calculator')
    return truth


async def _judge_all(
    config: TrainConfig, critic: CriticConfig, vote: str, solutions: Sequence[Solution]
) -> list[Judgement]:
    """The critiques of all solutions; those of one question are asked for together, so that they share its prefix."""
    groups: dict[tuple[str, str | None], list[int]] = {}
    for place, solution in enumerate(solutions):
        groups.setdefault((solution.problem.prompt, solution.problem.solution), []).append(place)
    results: dict[int, Judgement] = {}
    slots, done = asyncio.Semaphore(MAX_OPEN), 0
    async with _judge(config, critic, vote) as judge:

        async def critique(places: list[int]) -> None:
            nonlocal done
            async with slots:
                requests = [JudgeRequest(solutions[place].steps) for place in places]
                answers = await judge.critique(solutions[places[0]].problem, requests, critic.num_votes)
            for place, answer in zip(places, answers, strict=True):
                results[place] = Judgement(solutions[place], answer)
            done += len(places)
            if sys.stderr.isatty():
                print(f"\r{done}/{len(solutions)} solutions judged", end="", file=sys.stderr, flush=True)

        async with asyncio.TaskGroup() as tasks:
            for places in groups.values():
                tasks.create_task(critique(places))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return [results[place] for place in range(len(solutions))]


async def _open_store(path: str) -> GuardedStore | None:
    """The store at a path, none where there is none; `RunFailed` where a run holds it."""
    if not path:
        return None
    store = GuardedStore(Path(path).expanduser(), held_s=5.0)
    try:
        await store.open()
    except StoreHeld as error:
        raise RunFailed(str(error)) from error
    return store


@asynccontextmanager
async def _judge(config: TrainConfig, critic: CriticConfig, vote: str) -> AsyncIterator[Judge]:
    """The judge of the configuration, in this process and without Ray; its engine ends with it."""
    judge: Any = None
    engine: Any = None
    store = await _open_store(critic.store)
    try:
        try:
            judge, engine = await open_judge(engine_spec(config), critic, vote, 1, store)
        except ValueError as error:
            raise RunFailed(str(error)) from error
        yield judge
    finally:
        if hasattr(judge, "close"):
            await judge.close()
        if engine is not None:
            await asyncio.to_thread(engine.close)
        if store is not None:
            await store.close()


def _name(critic: CriticConfig) -> str:
    return {"vllm": critic.model, "endpoint": critic.endpoint.model}.get(critic.backend, critic.backend)


def _reasons(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Why critiques are invalid, most common first; without the text that a reason quotes, which is another in each."""
    counts: dict[str, int] = {}
    for reason in (_PLACE.sub("", c.reason) for j in judgements for c in j.critiques if not c.valid):
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:8])


def _write(path: str, judgements: Sequence[Judgement], vote: str) -> None:
    with Path(path).open("w", encoding="utf-8") as file:
        for j in judgements:
            voted = j.voted(len(j.critiques), vote)
            row = {
                "line": j.solution.line,
                "source": j.solution.source,
                "steps": list(j.solution.steps),
                "wrong": None if voted is None else sorted(voted),
                "critiques": [
                    {
                        "flagged": None if c.flagged is None else sorted(c.flagged),
                        "overall": c.overall,
                        "reason": c.reason,
                        "text": c.text,
                    }
                    for c in j.critiques
                ],
            }
            file.write(json.dumps(row) + "\n")


def _to_text(figures: dict[str, Any]) -> str:
    shown = {k: math.nan if v is None else v for k, v in figures["summary"].items()}
    parts = [
        f"critic {figures['critic']}   rubric {figures['rubric']}   vote {figures['vote']}",
        "\n".join(f"  {line}" for line in to_text([{"": k, " ": v} for k, v in shown.items()]).splitlines()[1:]),
        to_text([_nans(row) for row in figures["sources"]]),
    ]
    if figures["reasons"]:
        parts.append("invalid because:\n" + "\n".join(f"  {n:>7}  {why}" for why, n in figures["reasons"].items()))
    if "quality" in figures:
        parts.append(to_text([_nans(row) for row in figures["quality"]]))
    return "\n\n".join(parts)


def _nans(row: dict[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in row.items()}
