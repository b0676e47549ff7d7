"""What a search is worth at equal tokens: `python benchmarks/solve.py [--problems 200] [--policy laptop]`.

The laptop's chains for the policy of experiment=discovery, which is right on a quarter of them when it decodes
greedily and does not know a quarter of the facts; its searches judged by the shipped critic, by an oracle and by
oracles that are wrong now and then. On the plain engine (`plain_torch`), so that an arm costs a minute of one core; the
searches, the critic and the account of tokens are those of `capo-ray solve`.

`--gsm8k FILE --model DIR` does the same for a text model on vLLM with the calculator as the judge.
Results: solve.json (see records.py), one entry a world.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_torch.engine import PlainEngine
from records import record

from capo_ray.answers import extract_answer, fast_equal
from capo_ray.config.search import (
    BestOfNSearch,
    MajoritySearch,
    NavigatorSearch,
    SampleSearch,
    SearchBase,
)
from capo_ray.config.sections import CriticConfig, EngineConfig, ModelConfig
from capo_ray.config.solve import SolveConfig
from capo_ray.config.steps import DEFAULT_STEPS
from capo_ray.critics import build_judge
from capo_ray.critics.calculator import CalculatorJudge
from capo_ray.demand import policy_model
from capo_ray.engines import HfTokenizer, VllmEngine
from capo_ray.evaluation import compare, estimate, spelt
from capo_ray.flow.answering import ResponseFile
from capo_ray.flow.solving import Solve, Solving, solve_figures
from capo_ray.place.role import path_of
from capo_ray.place.roles import rollout
from capo_ray.problems import asset_path
from capo_ray.problems.chains import make_problem, true_wrong_steps
from capo_ray.prompts import frame_question
from capo_ray.protocols import Judge, JudgeRequest, Sampling, TextEngine
from capo_ray.types import Completion, Critique, Problem, Provenance, Verdict, VersionRun

RESULTS = record("solve.json")
STEP_TOKENS = 24
"""A step of a chain has 8 or, the box, 10."""
POOL = 64
"""Responses to each problem from which majority@n is taken for every n up to it."""


class Compared:
    """A verifier in this process: answers compared as far as plain numbers go."""

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        found = [extract_answer(text) for text in responses]
        return tuple(Verdict(int(bool(one and fast_equal(answer, one))), "compared", one) for one in found)


class Oracle:
    """A judge that knows which steps of a chain are wrong, and errs on a share of its verdicts on single steps.

    Whether it errs depends on the text alone: asked again it says the same. It writes and reads nothing.
    """

    def __init__(self, noise: float) -> None:
        self._noise = noise

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        return tuple((self._vote(problem, r.steps),) for r in responses)

    def _vote(self, problem: Problem, steps: tuple[str, ...]) -> Critique:
        wrong = true_wrong_steps(problem, steps)
        erring = {i for i in range(len(steps)) if self._errs(problem.prompt, steps[: i + 1])}
        return Critique(wrong ^ erring, None, "", "", Provenance("oracle", "", 0))

    def _errs(self, question: str, steps: tuple[str, ...]) -> bool:
        told = hashlib.sha256("\x00".join((question, *steps)).encode()).digest()
        return int.from_bytes(told[:4], "big") < self._noise * 2**32


class World:
    """One policy on one set of problems, and the arms that were run on it."""

    def __init__(self, name: str, config: SolveConfig, problems: list[Problem], engine: TextEngine) -> None:
        self.name, self.config, self.problems = name, config, problems
        self.arms: dict[str, dict[str, Any]] = {}
        self.rewards: dict[str, dict[str, float]] = {}
        self.engine = engine
        self.tokenizer = HfTokenizer(path_of(policy_model(config.serving())))

    async def arm(self, name: str, search: SearchBase, judge: Judge | None = None, num_votes: int = 1) -> None:
        """Run one search on all problems and keep its figures."""
        began = time.monotonic()
        how = Solve(
            search, DEFAULT_STEPS, "\n\n" if search.draws_steps else "", num_votes,
            self.config.rollout.max_response_tokens, self.config.model.max_model_len, 0,
            stop_strings=self.config.model.stop_strings,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            file = ResponseFile(Path(folder) / "rows.jsonl")
            solving = Solving(how, self.engine, self.tokenizer, judge, self._encode, file, in_flight=128)
            await solving.solve(self.problems, Compared(), "math")
        told = solve_figures(self.problems, self.name, file)
        rows = {p.id: file.of(self.name, p.id)[0] for p in self.problems}
        self.rewards[name] = {p: float(row["reward"]) for p, row in rows.items()}
        told["with_read_tokens"] = told["total_tokens"] + told["critic_prompt_tokens"]
        self.arms[name] = told | {"wall_s": round(time.monotonic() - began, 1)}
        print(f"{self.name}  {name:<34} {_line(told)}", flush=True)

    async def pool(self, temperature: float, top_p: float) -> None:
        """Draw the pool, and make of it majority@n for every power of two."""

        async def one(problem: Problem) -> list[tuple[str | None, bool, int]]:
            sampling = Sampling(temperature, top_p, self.config.rollout.max_response_tokens, n=POOL, seed=1)
            done = await self.engine.generate(self._encode(problem), sampling)
            answers = [extract_answer(c.text) for c in done]
            return [
                (None if a is None else spelt(a), bool(a and fast_equal(problem.answer, a)), len(c.token_ids))
                for a, c in zip(answers, done, strict=True)
            ]

        self._pool = dict(
            zip([p.id for p in self.problems], await asyncio.gather(*map(one, self.problems)), strict=True)
        )

    def majority(self, n: int) -> dict[str, float]:
        """Whether the commonest of the first n answers is right, for each problem."""
        from capo_ray.search.whole import commonest

        return {p: float(drawn[commonest([a for a, _, _ in drawn[:n]])][1]) for p, drawn in self._pool.items()}

    def pool_tokens(self, n: int) -> float:
        """Tokens of n responses, the mean over problems."""
        return sum(sum(t for _, _, t in drawn[:n]) for drawn in self._pool.values()) / len(self._pool)

    def at_equal_tokens(self, cost: str) -> dict[str, dict[str, Any]]:
        """Each judged arm against majority@n with the least n that costs no less; none where the pool is too small."""
        told = {}
        for name, figures in self.arms.items():
            n = next((n for n in range(1, POOL + 1) if self.pool_tokens(n) >= figures[cost]), 0)
            if n and figures["judgements"]:
                one = compare(self.majority(n), self.rewards[name])
                told[name] = {
                    "majority_n": n,
                    "majority_accuracy": sum(self.majority(n).values()) / len(self.problems),
                    "difference": one.difference.value,
                    "ci95": one.difference.ci95,
                    "p_value": one.p_value,
                }
        return told

    def result(self) -> dict[str, Any]:
        """All that was measured."""
        majority = {}
        for n in (2**i for i in range(POOL.bit_length())):
            right = estimate(list(self.majority(n).values()))
            majority[n] = {"accuracy": right.value, "ci95": right.ci95, "total_tokens": self.pool_tokens(n)}
        return {
            "problems": len(self.problems),
            "arms": self.arms,
            "majority": majority,
            "at_equal_written_tokens": self.at_equal_tokens("total_tokens"),
            "at_equal_tokens_with_what_the_critic_reads": self.at_equal_tokens("with_read_tokens"),
        }

    def _encode(self, problem: Problem) -> Sequence[int]:
        return frame_question(self.tokenizer, problem.prompt, self.config.model)


class Stopping:
    """A plain engine that stops at strings: it writes on for a few tokens, which are cut off and not counted."""

    def __init__(self, engine: PlainEngine) -> None:
        self._engine = engine

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        stops = sampling.stop_strings
        limit = min(sampling.max_tokens, STEP_TOKENS) if stops else sampling.max_tokens
        done = await self._engine.generate(prompt_ids, replace(sampling, stop_strings=(), max_tokens=limit))
        return tuple(_cut(one, stops) for one in done)


def _cut(one: Completion, stops: Sequence[str]) -> Completion:
    places = [one.text.find(stop) + len(stop) for stop in stops if stop in one.text]
    if not places:
        return one
    n = int(np.searchsorted(one.char_ends, min(places))) + 1
    return replace(
        one, token_ids=one.token_ids[:n], logprobs=one.logprobs[:n], char_ends=one.char_ends[:n],
        text=one.text[: one.char_ends[n - 1]], versions=(VersionRun(0, n),), finish="stop",
    )  # fmt: skip


def _line(told: Mapping[str, Any]) -> str:
    low, high = told["ci95"]
    return (
        f"{told['accuracy']:.3f} [{low:.3f}, {high:.3f}]  written {told['total_tokens']:.0f}  "
        f"with reads {told['with_read_tokens']:.0f}  judged {told['judged_steps']:.1f}"
    )


async def chains(num_problems: int, policy: str, keep: Callable[[dict[str, Any]], None]) -> None:
    """The laptop's world; `keep` gets what there is after each arm."""
    config = SolveConfig(
        model=ModelConfig(path=policy),
        engine=EngineConfig(max_num_seqs=128, kv_cache_gib=0.5),
        rollout={"max_response_tokens": 96},
        critic=CriticConfig(max_num_seqs=128),
    )
    problems = [_named(make_problem(0, i, 8, "held_out"), "chains") for i in range(num_problems)]
    world = World("chains", config, problems, Stopping(PlainEngine(asset_path(policy, "policy"))))  # type: ignore[arg-type]
    every = {"temperature": 1.0, "top_p": 1.0}
    await world.arm("greedy", SampleSearch(temperature=0))
    await world.arm("sample", SampleSearch(**every))
    await world.pool(1.0, 1.0)
    path = str(asset_path("laptop", "critic"))
    plain = PlainEngine(path)
    critic = {
        vote: build_judge(
            config.critic, vote=vote, quorum=1, engine=plain, tokenizer=plain.tokenizer, model_revision=path
        )
        for vote in ("greedy", "average")
    }
    judges: dict[str, tuple[Judge, int]] = {
        "critic, greedy vote": (critic["greedy"], 1),
        "oracle": (Oracle(0), 1),
        "critic, 4 votes": (critic["average"], 4),
        "oracle wrong 10%": (Oracle(0.1), 1),
        "oracle wrong 20%": (Oracle(0.2), 1),
    }
    for told, (judge, votes) in judges.items():
        for breadth in (16, 4):
            search = NavigatorSearch(
                breadth=breadth, budget=72, shows="whole" if "critic" in told else "steps", **every
            )
            await world.arm(f"navigator b={breadth}, {told}", search, judge, votes)
            keep(world.result())
        for n in (4, 16):
            await world.arm(f"best_of_{n}, {told}", BestOfNSearch(num_samples=n, **every), judge, votes)
            keep(world.result())


async def gsm8k(path: str, model: str, num_problems: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """GSM8K with a text model and the calculator as the judge: it reads and writes no token."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()[:num_problems]]
    ask = "Reason step by step, with a blank line between steps, and put the final answer in \\boxed{}."
    problems = [
        Problem(f"g{i}", f"{row['question']}\n\n{ask}", row["answer"].rpartition("#### ")[2].strip(), None, "gsm8k")
        for i, row in enumerate(rows)
    ]
    config = SolveConfig(
        model=ModelConfig(path=model, chat_template=True, max_model_len=768),
        engine=EngineConfig(max_num_seqs=64, kv_cache_gib=2),
        rollout={"max_response_tokens": 320},
        critic=CriticConfig(backend="calculator"),
    )
    engine = VllmEngine(rollout.engine_spec(config.serving()))
    engine.start()
    world = World("gsm8k", config, problems, engine)
    every = {"temperature": 0.6, "top_p": 0.95}
    await world.arm("greedy", SampleSearch(temperature=0))
    await world.arm("sample", SampleSearch(**every))
    judge = CalculatorJudge(config.critic)
    await world.arm("best_of_4, calculator", BestOfNSearch(num_samples=4, **every), judge)
    await world.arm("majority_4", MajoritySearch(num_samples=4, **every))
    await world.arm("navigator b=4, calculator", NavigatorSearch(budget=48, **every), judge)
    await asyncio.to_thread(engine.close)
    differences = {
        name: {"difference": one.difference.value, "ci95": one.difference.ci95, "p_value": one.p_value}
        for name, rewards in world.rewards.items()
        if name != "majority_4"
        for one in [compare(world.rewards["majority_4"], rewards)]
    }
    keep({"problems": len(problems), "model": Path(model).name, "arms": world.arms, "against_majority_4": differences})


def _named(problem: Problem, source: str) -> Problem:
    return Problem(problem.id, problem.prompt, problem.answer, None, source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--policy", default="discovery", choices=("discovery", "laptop"))
    parser.add_argument("--gsm8k", default="", help="test.jsonl of GSM8K; then --model too")
    parser.add_argument("--model", default="")
    parser.add_argument("--output", default=str(RESULTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(args.output)
    told = json.loads(path.read_text()) if path.is_file() else {}

    def keep(result: dict[str, Any]) -> None:
        told["gsm8k" if args.gsm8k else f"chains, {args.policy}"] = result
        path.write_text(json.dumps(told, indent=1) + "\n")

    if args.gsm8k:
        asyncio.run(gsm8k(args.gsm8k, args.model, args.problems, keep))
    else:
        asyncio.run(chains(args.problems, args.policy, keep))


if __name__ == "__main__":
    main()
