"""`capo-ray critique`: a critic over a file of solutions; choose critic, rubric, k and vote before paying for a run."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capo_ray.cli.compose import compose_train
from capo_ray.cli.critique_judging import Setting, judge_settings
from capo_ray.cli.critique_table import against_truth, by_source, finite, summary, to_text
from capo_ray.cli.overrides import Override, output_path, split
from capo_ray.config.credit import CapoConfig, Critiques
from capo_ray.config.sections import CriticConfig
from capo_ray.critics import calculate, parse_critique
from capo_ray.critics.judgement import Judgement
from capo_ray.critics.layouts import Solution
from capo_ray.critics.solutions import read_solutions
from capo_ray.problems.files import Place, format_of, line_rows, rows_of
from capo_ray.protocols import RunFailed

HELP = "judge the steps of a file of solutions: what a critic, rubric, k and vote are worth, and what they cost"
EXAMPLE = """examples:
  capo-ray critique --input solutions.jsonl critic.backend=calculator
  capo-ray critique --input solutions.jsonl --gold critic=/models/judge critic.rubric=paper critic.num_votes=8
  capo-ray critique --input processbench.json --gold critic=/models/judge critic.rubric=every_step \\
      --also critic.constrain=true --also critic.rubric=paper
  capo-ray critique --input - --json critic.backend=endpoint critic.endpoint.base_url=https://host/v1 \\
      critic.endpoint.model=judge critic.endpoint.key_file=/run/secrets/key

a line of input: {"question": …, "response": … or "steps": […], "answer"?, "solution"?, "wrong_steps"?: [0-based]}
or a line of a run's transcripts.jsonl (or of capo-ray credit), ProcessBench, PRM800K, Math-Shepherd, TRL (prompt,
completions, labels) or GSM8K's example_model_solutions.jsonl; also as Parquet, a JSON array, or packed.
exit codes: 0 done; 1 refused, or no critique could be read"""
MAX_LINE_BYTES = 256 << 20
"""Of a transcript a line is a group with a number of each kind per token: 50 MiB for 16 responses of 32k tokens."""
_PLACE = re.compile(r" at ['\"].*", re.DOTALL)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and the examples."""
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
    parser.add_argument(
        "--also", action="append", default=[], metavar="'KEY=VALUE …'",
        help="judge the same solutions once more with these changed, on the same engine where it can be; repeatable",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="judge the first N solutions only")
    parser.add_argument(
        "--output", metavar="FILE", type=output_path, help="write every critique there, one JSON object per solution"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")


def run(args: argparse.Namespace) -> int:
    """0 when at least one critique could be read."""
    settings = [
        setting_of(args.overrides, ""),
        *(setting_of([*args.overrides, *one.split()], one) for one in args.also),
    ]
    config = settings[0].config
    if any(setting.config.steps != config.steps for setting in settings):
        raise RunFailed("--also must leave steps.… as they are, since all judge the same solutions; set them once")
    rows, cut_anew = read_input(args.input), cuts_anew(args.overrides)
    solutions = list(read_solutions(rows, config.steps, args.limit, _say, cut_anew=cut_anew))
    if not solutions:
        raise RunFailed(f"--input must hold at least one solution (got none in {args.input})")
    truth = None
    if args.gold:
        if args.truth == "calculator":  # which labels every step
            solutions = [replace(solution, num_labelled=None) for solution in solutions]
        truth = _truth(solutions, args.truth, config.critic)
    told: list[dict[str, Any]] = []
    readable = False
    for setting, (judgements, wall_s) in zip(settings, asyncio.run(judge_settings(settings, solutions)), strict=True):
        if args.output:
            _write(args.output, judgements, setting, append=bool(told))
        told.append(_figures(setting, judgements, wall_s, truth))
        readable |= any(c.valid for j in judgements for c in j.critiques)
    if args.json:
        print(json.dumps(told[0] | ({"also": told[1:]} if told[1:] else {}), indent=2))
    else:
        print("\n\n".join(map(_to_text, told)))
        if truth is not None and len(told) > 1:
            print("\nall settings\n" + _joint_table(told))
    return 0 if readable else 1


def cuts_anew(overrides: Sequence[Override]) -> bool:
    """Whether it was asked how responses are cut into steps."""
    return any(split(given).key.partition(".")[0] == "steps" for given in overrides)


def read_input(path: str) -> Iterator[Place]:
    """(place, row or why it is none) of each line of a file; `-` is standard input."""
    if path == "-":
        return line_rows("-", sys.stdin.buffer, MAX_LINE_BYTES)
    file = Path(path).expanduser()
    if not file.is_file():
        raise RunFailed(f"--input must be a file of solutions, one JSON object per line, or - (got {path})")
    return rows_of(file, format_of(file), max_bytes=MAX_LINE_BYTES)


def _say(note: str) -> None:
    print(f"capo-ray critique: {note}", file=sys.stderr)


def setting_of(overrides: Sequence[Override], name: str) -> Setting:
    config = compose_train(overrides, judges=True)
    # Where the method reads no critiques, they are put together as by the one that a run has by default.
    asked = config.credit.asked(Critiques) or CapoConfig().asked(Critiques)
    assert asked is not None, "CAPO reads critiques"
    # All k votes are wanted here, so that the vote can be taken again for every smaller k.
    critic = config.critic.model_copy(update={"early_stop": False, "canary_every": 0})
    return Setting(name, config, critic, asked.vote)


def _figures(
    setting: Setting,
    judgements: Sequence[Judgement],
    wall_s: float,
    truth: Sequence[frozenset[int] | None] | None,
) -> dict[str, Any]:
    critic, max_k = setting.critic, max(len(j.critiques) for j in judgements)
    figures: dict[str, Any] = {
        "critic": _name(critic),
        "rubric": critic.rubric,
        "vote": setting.vote,
        "constrain": critic.constrain,
        "setting": setting.name,
        "summary": finite(summary(judgements, wall_s)),
        "sources": [finite(row) for row in by_source(judgements, setting.vote)],
        "reasons": _reasons(judgements),
    }
    if truth is not None:
        figures["quality"] = [finite(row) for row in against_truth(judgements, truth, max_k)]
    return figures


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


def _name(critic: CriticConfig) -> str:
    return {"vllm": critic.model, "endpoint": critic.endpoint.model}.get(critic.backend, critic.backend)


def _reasons(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Why critiques are invalid, most common first; without the text that a reason quotes, which is another in each."""
    counts: dict[str, int] = {}
    for reason in (_PLACE.sub("", c.reason) for j in judgements for c in j.critiques if not c.valid):
        counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1])[:8])


def _write(path: Path, judgements: Sequence[Judgement], setting: Setting, *, append: bool) -> None:
    with path.open("a" if append else "w", encoding="utf-8") as file:
        for j in judgements:
            voted = j.voted(len(j.critiques), setting.vote)
            row = {
                **({"setting": setting.name} if append else {}),
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
        f"critic {figures['critic']}   rubric {figures['rubric']}   vote {figures['vote']}"
        + (f"   also {figures['setting']}" if figures["setting"] else ""),
        "\n".join(f"  {line}" for line in to_text([{"": k, " ": v} for k, v in shown.items()]).splitlines()[1:]),
        to_text([_nans(row) for row in figures["sources"]]),
    ]
    if figures["reasons"]:
        parts.append("invalid because:\n" + "\n".join(f"  {n:>7}  {why}" for why, n in figures["reasons"].items()))
    if "quality" in figures:
        parts.append(to_text([_nans(row) for row in figures["quality"]]))
    return "\n\n".join(parts)


def _joint_table(told: Sequence[dict[str, Any]]) -> str:
    """The quality of every setting at its full k."""
    rows = [
        {"also": figures["setting"] or "-"} | _nans(row)
        for figures in told
        for row in figures["quality"]
        if row["k"] == figures["quality"][-1]["k"]
    ]
    return to_text(rows)


def _nans(row: dict[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None else v for k, v in row.items()}
