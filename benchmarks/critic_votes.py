"""What one vote of a critic of the chains world is worth, what a majority is, and what the critic's teaching cost.

    make bench NAME=critic_votes ARGS="--critics novice laptop --flag-unasked"
    make bench NAME=critic_votes ARGS="--flag-unasked --record"          what the documentation quotes

A policy answers held-out chains at temperature 1; each critic reads every response `--votes` times. Per critic and
temperature: precision and recall over steps of single votes and of the majority (at least half of the valid votes), the
steps that each judges rightly, whole critiques alike in pairs of votes, and errors of one vote that another makes too.
An interval is of a bootstrap over responses. What teaching cost is counted from the critic's recipe.json: labelled
tokens are those of its critiques, FLOPs are 6 per parameter and token read, prompts included, of it and of every model
before it.
At temperature 0 all votes are one greedy vote. The models' own draws: `--top-p` is 1 where runs have `critic.top_p`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learning import prepare
from plain_torch.model import Model
from plain_torch.sampling import Asked, sample
from records import record

from capo_ray.config.sft import SftConfig
from capo_ray.engines import HfTokenizer
from capo_ray.problems import asset_path
from capo_ray.problems.chains import make_problem, shown_answer, split_steps, true_wrong_steps, unasked_steps
from capo_ray.problems.chains_lessons import critic_prompt, read_incorrect_steps
from capo_ray.problems.lessons import build_lessons
from capo_ray.votes import step_weights

RESAMPLES = 1000
Steps = frozenset[int]


@dataclass(frozen=True)
class Judged:
    """A response: its prompt for critics, the truth of its steps, and what each valid vote flags."""

    num_steps: int
    truth: Steps
    votes: tuple[Steps, ...]

    @property
    def majority(self) -> Steps:
        return frozenset(s for s, w in enumerate(step_weights(self.votes, self.num_steps, "majority")) if w)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="novice", help="a model directory or a shipped name")
    parser.add_argument("--critics", nargs="+", default=["novice", "laptop"], help="model directories or shipped names")
    parser.add_argument("--operations", type=int, default=4)
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--votes", type=int, default=4)
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 0.7, 1.0, 1.5])
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--flag-unasked", action="store_true", help="as critic.flag_unasked: a rule beside each vote")
    args = parser.parse_args()
    prepare()
    problems = [make_problem(0, i, args.operations, "held_out") for i in range(args.problems)]
    policy = str(asset_path(args.policy, "policy"))
    texts = [row[0] for row in said(policy, [f"{p.prompt}\n" for p in problems], 1, 6 * args.operations + 16, 1.0, 1.0)]
    shown = [split_steps(text) for text in texts]
    truths = [true_wrong_steps(p, s) for p, s in zip(problems, shown, strict=True)]
    right = [shown_answer(text) == p.answer for text, p in zip(texts, problems, strict=True)]
    print(f"{args.policy}: sampled accuracy {statistics.fmean(right):.3f}, {rate(truths, shown):.3f} of steps wrong")
    prompts = [critic_prompt(p.prompt, s) for p, s in zip(problems, shown, strict=True)]
    found: list[dict[str, Any]] = []
    for name in args.critics:
        path = asset_path(name, "critic")
        print(f"\n{name}: {cost(path)}")
        print(
            "| temperature | unreadable | one vote: precision, recall | steps right | majority: precision, recall | "
            "steps right | majority - one vote, steps right | pairs alike | errors shared |\n" + "|---" * 9 + "|"
        )
        for temperature in args.temperatures:
            rows = said(str(path), prompts, args.votes, 7 * (args.operations + 1) + 16, temperature, args.top_p)
            read = [[read_incorrect_steps(t, len(s)) for t in row] for row, s in zip(rows, shown, strict=True)]
            ruled = [
                unasked_steps(p, s) if args.flag_unasked else Steps() for p, s in zip(problems, shown, strict=True)
            ]
            judged = [
                Judged(len(s), truth, tuple(v | rule for v in votes if v is not None))
                for s, truth, votes, rule in zip(shown, truths, read, ruled, strict=True)
            ]
            lost = sum(vote is None for votes in read for vote in votes) / sum(map(len, read))
            figures = worth(judged)
            print(f"| {temperature:g} | {lost:.3f} | {line(figures)} |", flush=True)
            about = {"critic": path.name, "teaching": cost(path), "temperature": temperature, "unreadable": lost}
            found.append({name: rounded(x) for name, x in (about | figures).items()})
    record("critic_votes.json").write_text(json.dumps({"asked": vars(args), "rows": found}, indent=1) + "\n")


def said(path: str, prompts: Sequence[str], count: int, room: int, temperature: float, top_p: float) -> list[list[str]]:
    """The texts of `count` completions of each prompt."""
    model, tokenizer = Model(path), HfTokenizer(path)
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    texts: dict[int, list[str]] = {}
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    for at in range(0, len(order), 128):
        part = order[at : at + 128]
        drawn = sample(model, [Asked(ids[i], count, room, 1000 * i) for i in part], temperature, top_p)
        for i, row in zip(part, drawn, strict=True):
            texts[i] = [tokenizer.decode_pieces(one.ids)[0] for one in row]
    return [texts[i] for i in range(len(ids))]


def worth(judged: Sequence[Judged]) -> dict[str, Any]:
    """What one vote is worth, what a majority is, and how alike the votes are."""
    seen = [j for j in judged if j.votes]
    alone, together = [(j.truth, v) for j in seen for v in j.votes], [(j.truth, j.majority) for j in seen]
    gains = [right_steps(j.majority, j) - statistics.fmean(right_steps(v, j) for v in j.votes) for j in seen]
    sizes = [j.num_steps for j in seen]
    ones = sum(statistics.fmean(right_steps(v, j) for v in j.votes) for j in seen) / sum(sizes)
    majority = sum(right_steps(j.majority, j) for j in seen) / sum(sizes)
    pairs = [(j, a, b) for j in seen for a, b in itertools.permutations(j.votes, 2)]
    alike = statistics.fmean(a == b for _, a, b in pairs)
    errors = [(a ^ j.truth, b ^ j.truth) for j, a, b in pairs]
    shared = sum(len(a & b) for a, b in errors) / max(1, sum(len(a) for a, _ in errors))
    low, high = interval(gains, sizes)
    return {
        "one": quality(alone), "one_right": ones, "majority": quality(together), "majority_right": majority,
        "gain": (majority - ones, low, high), "pairs_alike": alike, "errors_shared": shared,
    }  # fmt: skip


def line(figures: dict[str, Any]) -> str:
    """The cells of a row after the first two."""
    one, majority = (", ".join(f"{x:.3f}" for x in figures[name]) for name in ("one", "majority"))
    gain, low, high = figures["gain"]
    return (
        f"{one} | {figures['one_right']:.3f} | {majority} | {figures['majority_right']:.3f} | {gain:+.3f} "
        f"[{low:+.3f}, {high:+.3f}] | {figures['pairs_alike']:.3f} | {figures['errors_shared']:.2f}"
    )


def rounded(x: Any) -> Any:
    """Numbers to four digits, also those of a tuple."""
    if isinstance(x, tuple):
        return [rounded(part) for part in x]
    return round(x, 4) if isinstance(x, float) else x


def right_steps(flagged: Steps, judged: Judged) -> int:
    """How many steps of the response are judged rightly where these are flagged."""
    return judged.num_steps - len(flagged ^ judged.truth)


def quality(pairs: Sequence[tuple[Steps, Steps]]) -> tuple[float, float]:
    """Precision and recall over pairs of truth and flags."""
    hits = sum(len(truth & flagged) for truth, flagged in pairs)
    precision = hits / max(1, sum(len(flagged) for _, flagged in pairs))
    return precision, hits / max(1, sum(len(truth) for truth, _ in pairs))


def interval(gains: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """The 95% interval of the sum of gains over the sum of sizes, responses drawn anew."""
    rng, indices = random.Random(0), range(len(gains))
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.choices(indices, k=len(gains))
        means.append(sum(gains[i] for i in drawn) / sum(sizes[i] for i in drawn))
    means.sort()
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]


def rate(truths: Sequence[Steps], shown: Sequence[Sequence[str]]) -> float:
    """The share of steps that are wrong."""
    return sum(map(len, truths)) / sum(map(len, shown))


def cost(path: Path) -> str:
    """What teaching the model of a directory took, in words."""
    if not (path / "recipe.json").is_file():
        return "no recipe.json"
    recipe = json.loads((path / "recipe.json").read_text())
    counts = [tokens_of(stage, HfTokenizer(str(path))) for stage in stages(recipe)]
    labelled, flops = sum(labels for labels, _ in counts), 6 * recipe["num_parameters"] * sum(n for _, n in counts)
    return f"{recipe['num_parameters']:,} parameters, {labelled / 1e6:.2f}M labelled tokens, {flops / 1e9:,.0f} GFLOP"


def stages(recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A recipe, that of the model it began from, and so on to the first."""
    stage: dict[str, Any] | None = recipe
    while stage:
        yield stage
        stage = stage.get("start")


def tokens_of(recipe: dict[str, Any], tokenizer: HfTokenizer) -> tuple[int, int]:
    """Labelled and all tokens that a recipe's updates read, from the first thousand of its lessons."""
    config = SftConfig.model_validate(recipe["config"])
    lessons = build_lessons(config.data, config.run.seed).train
    drawn = [lessons.next_problem() for _ in range(1000)]
    labelled = statistics.fmean(len(tokenizer.encode(str(lesson.answer))) + 1 for lesson in drawn)
    prompts = statistics.fmean(len(tokenizer.encode(lesson.prompt)) for lesson in drawn)
    count = config.run.num_updates * config.batch_size
    return round(count * labelled), round(count * (labelled + prompts))


if __name__ == "__main__":
    main()
