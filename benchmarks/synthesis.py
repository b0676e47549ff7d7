"""What synthesised problems are worth: what the filters catch, and training on them beside training on originals.

    python benchmarks/synthesis.py yield TRAIN TEST [NUM]      GSM8K's files: yield, planted faults, planted copies
    python benchmarks/synthesis.py teach FOLDER                a careless policy (capo-ray sft)
    python benchmarks/synthesis.py run SEED FOLDER             every arm; lines of results/synthesis.jsonl
    python benchmarks/synthesis.py table FILE                  the tables of docs/synthesize.md

Training is supervised (capo-ray sft), on worked tallies in words (`synthesis_parts.py`), of a policy of the laptop's
that was taught them carelessly. Arms, of as many updates and lessons: `original`, tallies of the world; `synthesised`,
as many that `data=synthetic` makes of an eighth of those, which alone are read; `any digits`, the same with
`data.number_span=10`, which lets a number be any of as many digits; `few`, that eighth again and again.
Held-out: 256 tallies of the other side, answered greedily and at temperature 1.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from plain_torch.engine import PlainEngine
from records import record
from solve_parts import Compared
from synthesis_parts import HIGH, draw_tally, plant_among, plant_copies
from turns import supervise

from capo_ray.config.sections import DataConfig, ModelConfig
from capo_ray.evaluation import compare, estimate
from capo_ray.problems import build_problems
from capo_ray.problems.columns import question_of
from capo_ray.prompts import frame_question
from capo_ray.protocols import Sampling
from capo_ray.synthesis import Filters, Held, derived_agreement, instances, plain_solution, read_programs

NUM_LESSONS, NUM_TEMPLATES, HELD_OUT, SAMPLES = 480, 60, 256, 4
TRAINING = "run.num_updates=60 learner.lr=1e-3 batch_size=24 max_tokens=160"
NUM_CARELESS = 12000
CARELESS = ((0.35, 200, 1.5e-3), (0.0, 80, 1e-3), (0.35, 30, 1e-3))
"""The lessons of the policy, one after another: how often a result is careless, updates, and their rate."""
Rows = list[tuple[str, str]]


def count_yield(templates: Rows, held_out: list[str], num: int) -> dict[str, Any]:
    """What becomes of `num` candidates made from these worked problems, of planted faults and of planted copies."""
    programs, held = read_programs("row", templates), Held()
    held.add(held_out)
    filters = Filters(held, derived_agreement)
    filters.know(question for question, _ in templates)
    for one in instances(programs, 0, num):
        filters.admit(one)
    near = sum(held.leaks(question) for question, _ in templates)
    told = {"templates": len(templates), "programs": len(programs), "templates_near_held_out": near}
    return told | {"counts": filters.counts()} | plant_among(programs, num) | plant_copies(held_out)


def rows_of(path: str) -> Rows:
    """Question and worked answer of each line."""
    rows = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return [(question_of(row, "question"), row["answer"]) for row in rows]


def tallies(seed: str, num: int, held_out: bool = False) -> Rows:
    """Distinct worked tallies."""
    rng, found = random.Random(f"tallies/{seed}"), dict[str, str]()
    while len(found) < num:
        one = draw_tally(rng, "held_out" if held_out else "train")
        found[one.question] = one.worked
    return list(found.items())


def teach(folder: Path) -> None:
    """The careless policy, in `folder`; beside it those of the stages before, which are not taught again."""
    rng, model = random.Random("tallies/lessons"), "laptop"
    with tempfile.TemporaryDirectory() as scratch:
        for stage, (slip_frac, num_updates, lr) in enumerate(CARELESS):
            drawn = [draw_tally(rng) for _ in range(NUM_CARELESS)]
            lessons = [(one.question, one.response(rng, slip_frac)) for one in drawn]
            out = folder if stage + 1 == len(CARELESS) else folder.with_name(f"{folder.name}-{stage}")
            if not out.exists():
                words = f"run.num_updates={num_updates} learner.lr={lr} batch_size=48 max_tokens=160"
                supervise(lessons, model, out, words, Path(scratch))
            model = str(out)


def run(seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Which held-out problems the policy is right on, before and after each arm's training."""
    originals, held_out = tallies(str(seed), NUM_LESSONS), tallies("held out", HELD_OUT, held_out=True)
    templates = originals[:NUM_TEMPLATES]
    yield {"arm": "before", "seed": seed, **answered(folder, held_out)}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        arms = {
            "synthesised": synthesised(templates, held_out, seed, scratch),
            "any digits": synthesised(templates, held_out, seed, scratch, number_span=10),
            "original": list(map(lesson, originals)),
            "few": list(islice(cycle(map(lesson, templates)), NUM_LESSONS)),
        }
        for arm, lessons in arms.items():
            started = time.process_time()
            supervise(lessons, str(folder), scratch / arm, f"{TRAINING} run.seed={seed}", scratch)
            told = {"arm": arm, "seed": seed, **answered(scratch / arm, held_out)}
            if arm in ("synthesised", "any digits"):
                told["over_high_frac"] = sum(max(numbers(one)) > HIGH for one in lessons) / len(lessons)
            if arm == "synthesised":
                told["yield"] = count_yield(templates, [question for question, _ in held_out], NUM_LESSONS)
            yield told | {"cpu_s": round(time.process_time() - started)}


def numbers(one: tuple[str, str]) -> list[int]:
    """The numbers of a question and of what is taught."""
    return [int(text) for text in re.findall(r"\d+", " ".join(one))]


def lesson(row: tuple[str, str]) -> tuple[str, str]:
    """A worked row as it is taught."""
    worked, _, answer = row[1].rpartition("\n#### ")
    return row[0], plain_solution(worked, answer)


def synthesised(templates: Rows, held_out: Rows, seed: int, scratch: Path, **told: float) -> Rows:
    """As many lessons made from these by `data=synthetic`."""
    for name, rows in (("templates", templates), ("held_out", held_out)):
        lines = (json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows)
        (scratch / f"{name}.jsonl").write_text("".join(lines))
    paths = {"path": f"{scratch}/templates.jsonl", "eval_path": f"{scratch}/held_out.jsonl"}
    source = build_problems(DataConfig(kind="synthetic", **paths, **told), seed).train
    drawn = [source.next_problem() for _ in range(NUM_LESSONS)]
    return [(problem.prompt, problem.solution or "") for problem in drawn]


def answered(model: Path, held_out: Rows) -> dict[str, Any]:
    """Of each held-out problem whether the greedy response is right, and how many of the samples."""
    engine = PlainEngine(model)

    async def one(place: int, row: tuple[str, str], temperature: float, n: int) -> int:
        sampling = Sampling(temperature, max_tokens=48, n=n, seed=1000 * place)
        said = await engine.generate(frame_question(engine.tokenizer, row[0], ModelConfig()), sampling)
        answer = row[1].rpartition("#### ")[2]
        return sum(v.reward == 1 for v in await Compared().verify(answer, [c.text for c in said]))

    async def all_of(temperature: float, n: int) -> str:
        return "".join(map(str, await asyncio.gather(*(one(i, p, temperature, n) for i, p in enumerate(held_out)))))

    return {"greedy": asyncio.run(all_of(0.0, 1)), "sampled": asyncio.run(all_of(1.0, SAMPLES))}


def table(path: Path) -> None:
    """Held-out accuracy of each arm, its seeds together, and beyond `original` on the same problems."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print("| arm | seeds | greedy | beyond `original` | sampled | beyond `original` |\n|" + "---|" * 6)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = []
        for name in ("greedy", "sampled"):
            own = rates(rows, arm, name)
            over, beyond = estimate(list(own.values())), compare(rates(rows, "original", name), own).difference
            cells.append(f"{over.value:.3f} [{over.low:.3f}, {over.high:.3f}]")
            told = f"{beyond.value:+.3f} [{beyond.low:+.3f}, {beyond.high:+.3f}]"
            cells.append("" if arm == "original" else told)
        print(f"| `{arm}` | {len({row['seed'] for row in rows if row['arm'] == arm})} | {' | '.join(cells)} |")


def rates(rows: list[dict[str, Any]], arm: str, name: str) -> dict[str, float]:
    """The share of right answers to each held-out problem, over the seeds of an arm."""
    runs = [row[name] for row in rows if row["arm"] == arm]
    most = 1 if name == "greedy" else SAMPLES
    return {str(i): sum(int(one[i]) for one in runs) / (most * len(runs)) for i in range(HELD_OUT)}


def main() -> None:
    command, *words = sys.argv[1:]
    if command == "yield":
        train, test = rows_of(words[0]), [question for question, _ in rows_of(words[1])]
        told = json.dumps(count_yield(train, test, int(words[2]) if words[2:] else 2000), indent=1)
        record("synthesis_yield.json").write_text(told + "\n")
        print(told)
    elif command == "teach":
        teach(Path(words[0]))
    elif command == "run":
        import torch

        torch.set_num_threads(1)
        for told_of in run(int(words[0]), Path(words[1])):
            print(json.dumps(told_of), flush=True)
    elif command == "table":
        table(Path(words[0]))
    else:
        raise SystemExit(f"expected yield, teach, run or table, got {command}")


if __name__ == "__main__":
    main()
