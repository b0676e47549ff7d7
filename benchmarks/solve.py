"""What a search is worth at equal tokens of policy and critic together.

    python benchmarks/solve.py [--world novice] [--problems 256] [--record]   run, print the tables, keep solve.json
    python benchmarks/solve.py --world gsm8k --path test.jsonl --model DIR --problems 64
    python benchmarks/solve.py --table [--plot docs/images/solve.png]         from what has run

Worlds: `novice`, chains of 4 operations for the policy of experiment=novice, which lacks two fifths of the facts, with
its own critic, which is not privileged; `discovery`, chains of 8 for a policy that lacks a quarter, with the laptop's
critic, which knows them all. Both on the plain engine (`plain_torch`), minutes of one core. `gsm8k`: a text model on
vLLM, judged by the calculator, which reads and writes no token.

In each the navigator runs under one budget after another, and majority@n and best of n by fewest flags for every n,
from one pool of responses; judged by the critic, by an oracle, and by oracles of a set precision and recall. A search
is set against a rival with the least n that costs no less, on the same problems: paired bootstrap intervals.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from plain_torch.engine import PlainEngine
from records import PUBLISHED, record
from solve_parts import Oracle, Point, Remembering, Stopping, World
from solve_report import draw, tables

from capo_ray.config.search import NavigatorSearch, SampleSearch
from capo_ray.config.sections import CriticConfig, EngineConfig, ModelConfig
from capo_ray.config.solve import SolveConfig
from capo_ray.critics import RuledJudge
from capo_ray.critics.build import build_judge
from capo_ray.critics.calculator import CalculatorJudge
from capo_ray.engines import HfTokenizer, VllmEngine
from capo_ray.place.roles import rollout
from capo_ray.problems import asset_path
from capo_ray.problems.chains import make_problem
from capo_ray.problems.truth import true_wrong_steps, unasked_steps
from capo_ray.protocols import Judge
from capo_ray.types import Problem

RESULTS = record("solve.json")
CHAINS = {"novice": (4, "novice"), "discovery": (8, "laptop")}
"""Operations, and the critic."""
ORACLES = ((1.0, 1.0), (0.95, 0.95), (0.9, 0.9), (0.8, 0.8), (1.0, 0.5), (0.5, 1.0))
"""Precision and recall."""
BUDGETS = (4, 8, 16, 32, 64, 128)
TEXT_BUDGETS = (4, 8, 16)
"""Those of a text model."""
STEPS_SHOWN = "critic shown the steps so far"
ASK = "Reason step by step, with a blank line between steps, and put the final answer in \\boxed{}."
Keep = Callable[[dict[str, Any]], None]


@dataclass
class Curves:
    """What has been measured in a world, and how it is kept."""

    world: World
    told: dict[str, Any]
    keep: Keep
    curves: dict[str, list[Point]] = field(default_factory=dict)

    async def judged(
        self, name: str, judge: Judge, num_votes: int, search: NavigatorSearch, ns: list[int], budgets: list[int]
    ) -> None:
        """The navigator and best of n by this judge."""
        began, remembered = time.process_time(), Remembering(judge)
        self.curves[f"best of n, {name}"] = [await self.world.best(n, remembered, num_votes) for n in ns]
        self.save()
        walks = [search.model_copy(update={"budget": budget}) for budget in budgets]
        self.curves[f"navigator, {name}"] = [await self.world.walk(walk, remembered, num_votes) for walk in walks]
        self.told.setdefault("cpu_s", {})[name] = round(time.process_time() - began, 1)
        self.save()

    def save(self) -> None:
        """Keep what there is; rewards as a string of 0 and 1, problem by problem."""
        points = {name: [_to_json(p) for p in points] for name, points in self.curves.items()}
        self.keep(self.told | {"curves": points})


def _to_json(point: Point) -> dict[str, Any]:
    rewards = "".join(str(int(r)) for r in point.rewards.values())
    costs = ("policy_tokens", "critic_tokens", "critic_prompt_tokens")
    return {"setting": point.setting, "rewards": rewards, **{c: round(getattr(point, c), 2) for c in costs}}


async def chains(name: str, num_problems: int, pool: int, breadth: int, budgets: list[int], keep: Keep) -> None:
    """One of the laptop's worlds; `keep` gets what there is after each judge."""
    operations, critic_name = CHAINS[name]
    policy, critic_path = asset_path(name, "policy"), str(asset_path(critic_name, "critic"))
    critic = CriticConfig(model=critic_name, flag_unasked=critic_name == "novice", max_num_seqs=128)
    config = SolveConfig(
        model=ModelConfig(path=name),
        engine=EngineConfig(max_num_seqs=128),
        rollout={"max_response_tokens": 10 * operations + 16},
        critic=critic,
    )
    problems = [make_problem(0, i, operations, "held_out") for i in range(num_problems)]
    engine, every = PlainEngine(policy), {"temperature": 1.0, "top_p": 1.0}
    world = World(config, list(problems), Stopping(engine), engine.tokenizer, SampleSearch(**every))  # type: ignore[arg-type]
    await world.draw(pool)
    wrong_frac = world.wrong_frac(true_wrong_steps)
    plain = PlainEngine(critic_path)
    real: Judge = build_judge(
        critic, vote="greedy", quorum=1, engine=plain, tokenizer=plain.tokenizer, model_revision=critic_path
    )
    if critic.flag_unasked:
        real = RuledJudge(real, unasked_steps)  # type: ignore[arg-type]
    judges: dict[str, Judge] = dict.fromkeys(("critic", STEPS_SHOWN), Remembering(real))
    judges |= {f"oracle {p:g}/{r:g}": Oracle(true_wrong_steps, p, r, wrong_frac) for p, r in ORACLES}
    quality: dict[str, dict[str, float]] = {}
    told: dict[str, Any] = {"problems": num_problems, "operations": operations, "breadth": breadth, "quality": quality}
    told |= {"wrong_steps_frac": wrong_frac, "sampled": sum(world.sampled().values()) / num_problems}
    curves = Curves(world, told, keep)
    ns = [2**i for i in range(pool.bit_length())]
    curves.curves["majority"] = [world.majority(n) for n in range(1, pool + 1)]
    for judge_name, judge in judges.items():
        quality[judge_name] = await world.quality(true_wrong_steps, judge, 1)
        shows = "whole" if judge_name == "critic" else "steps"  # what follows a step costs tokens of the policy
        search = NavigatorSearch(breadth=breadth, shows=shows, **every)
        await curves.judged(judge_name, judge, 1, search, ns, budgets)


async def gsm8k(args: argparse.Namespace, budgets: list[int], keep: Keep) -> None:
    """GSM8K with a text model in bf16, and the calculator as the judge."""
    model, tokens, pool, breadth = args.model, args.tokens, args.pool, args.breadth
    rows = [json.loads(line) for line in Path(args.path).read_text(encoding="utf-8").splitlines()[: args.problems]]
    problems = [
        Problem(f"g{i}", f"{row['question']}\n\n{ASK}", row["answer"].rpartition("#### ")[2].strip(), None, "gsm8k")
        for i, row in enumerate(rows)
    ]
    config = SolveConfig(
        model=ModelConfig(path=model, dtype="bfloat16", chat_template=True, max_model_len=512 + tokens),
        engine=EngineConfig(max_num_seqs=64, kv_cache_gib=2),
        rollout={"max_response_tokens": tokens},
        critic=CriticConfig(backend="calculator"),
    )
    engine = VllmEngine(rollout.engine_spec(config.serving()))
    engine.start()
    every = {"temperature": 0.6, "top_p": 0.95}
    world = World(config, problems, engine, HfTokenizer(model), SampleSearch(**every))
    began = time.process_time()
    greedy = await world.greedy()
    print(f"greedy {time.process_time() - began:.0f} s", flush=True)
    await world.draw(pool)
    told: dict[str, Any] = {"problems": len(problems), "model": Path(model).name, "breadth": breadth, "tokens": tokens}
    told["cpu_s"] = {"greedy and pool": round(time.process_time() - began, 1)}
    told |= {"sampled": sum(world.sampled().values()) / len(problems)}
    curves = Curves(world, told, keep)
    curves.curves["greedy"] = [greedy]
    curves.curves["majority"] = [world.majority(n) for n in range(1, pool + 1)]
    curves.save()
    search, ns = NavigatorSearch(breadth=breadth, shows="steps", **every), [2**i for i in range(pool.bit_length())]
    await curves.judged("calculator", CalculatorJudge(config.critic), 1, search, ns, budgets)
    await asyncio.to_thread(engine.close)


def numbers(text: str) -> list[int]:
    """Those of a list with commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers from 1 on, as 4,8,16 (got {text!r})")
    return [int(part) for part in parts]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="novice", choices=(*CHAINS, "gsm8k"))
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--pool", type=int, default=32, help="responses of each problem for majority@n and best of n")
    parser.add_argument("--breadth", type=int, default=16, help="draws of a step before the one above is taken back")
    parser.add_argument(
        "--budgets", type=numbers, default=[], help="of judged steps, the navigator's, one after another: 4,8,16"
    )
    parser.add_argument("--path", default="", help="with --world gsm8k: its test.jsonl")
    parser.add_argument("--model", default="", help="with --world gsm8k: a model directory with a chat template")
    parser.add_argument("--tokens", type=int, default=320, help="with --world gsm8k: most of a response")
    parser.add_argument("--table", action="store_true", help="print the tables of what has run, and run nothing")
    parser.add_argument("--plot", type=Path, help="write the curves of all worlds")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    there = Path(args.path).is_file() and Path(args.model, "config.json").is_file()
    if args.world == "gsm8k" and not args.table and not there:
        parser.error(f"--world gsm8k needs --path FILE and --model DIRECTORY (got {args.path!r} and {args.model!r})")
    return args


def main() -> None:
    args = parse()
    path = PUBLISHED / "solve.json" if args.table and args.output == RESULTS else args.output
    told: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def keep(result: Mapping[str, Any]) -> None:
        told[args.world] = result
        path.write_text(json.dumps(told, indent=1) + "\n")

    if not args.table:
        torch.set_num_threads(1)
        is_text = args.world == "gsm8k"
        budgets = args.budgets or list(TEXT_BUDGETS if is_text else BUDGETS)
        if is_text:
            asyncio.run(gsm8k(args, budgets, keep))
        else:
            asyncio.run(chains(args.world, args.problems, args.pool, args.breadth, budgets, keep))
    for world, result in told.items():
        print(f"\n## {world}\n\n{tables(result)}")
    if args.plot:
        draw(told, args.plot)


if __name__ == "__main__":
    main()
