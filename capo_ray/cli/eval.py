"""`capo-ray eval`: how good a policy is on benchmarks, with intervals, and whether it is better than another."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_ray.cli.compose import list_choices
from capo_ray.cli.overrides import Override, add_config, all_overrides, split
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import RESPONSES_FILE, SUMMARY_FILE, TABLE_FILE

if TYPE_CHECKING:
    from capo_ray.config.evaluation import BenchConfig, EvalConfig, Suite
    from capo_ray.flow.answering import Asked, ResponseFile
    from capo_ray.types import Problem

HELP = """accuracy of a policy on benchmarks, with 95% intervals; --compare: is it better than another?

model= is a choice, a Hugging Face directory, a hub name, a run or an earlier evaluation. Every response is kept in
EVALUATION/responses.jsonl; what is there is not asked again: resume=EVALUATION, or the same run.name."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and the suites that exist."""
    parser.add_argument("overrides", nargs="*", metavar="override", help="suite=NAME,…, group=choice or key=value")
    add_config(parser)
    parser.add_argument("--compare", metavar="OTHER", help="a model, run or earlier evaluation, on the same problems")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    examples = (
        "capo-ray eval model=runs/latest suite=gsm8k,math500 eval.num_samples=16 --compare Qwen/Qwen2.5-1.5B-Instruct",
        "capo-ray eval model=/any/directory suite=own eval.path=mine.jsonl data.answer_column=gold eval=greedy",
        "capo-ray eval model=evals/before --compare evals/after",
    )
    more = "\n".join(f"         {example}" for example in examples)
    parser.epilog = f"suites: {', '.join(list_choices('suite'))}\n\n{parser.epilog}\n{more}"


@dataclass(frozen=True)
class _Evaluation:
    """A finished evaluation: where it is, its responses, and the problems of each suite."""

    directory: Path
    config: EvalConfig
    file: ResponseFile
    figures: dict[str, dict[str, Any]]


def run(args: argparse.Namespace) -> int:
    """0 once every figure is told."""
    from capo_ray.cli.eval_report import comparison_table, table

    told = evaluate(all_overrides(args), args.compare)
    shown = [table(told["suites"])]
    if args.compare:
        shown.append(comparison_table(told["comparison"], args.compare))
    responses = Path(told["directory"]) / RESPONSES_FILE
    print(json.dumps(told) if args.json else "\n\n".join([*shown, f"responses: {responses}"]), flush=True)
    return 0


def evaluate(overrides: Sequence[Override], compare: str | None = None) -> dict[str, Any]:
    """What `--json` prints: the figures of each suite and, against another evaluation or policy, the difference."""
    from capo_ray.cli.eval_report import comparison
    from capo_ray.cli.eval_settings import compose_eval

    this = _evaluate(compose_eval(overrides))
    told: dict[str, Any] = {"model": this.config.model.path, "directory": str(this.directory), "suites": this.figures}
    if compare:
        other = _other(compare, overrides, this)
        told["compared_with"] = str(other.path.parent)
        told["comparison"] = comparison(list(this.figures), this.file, other)
        if not told["comparison"]:
            raise RunFailed(
                f"--compare: expected problems that both evaluations asked, got none in common with {other.path.parent}"
                "; give both the same suite, data, eval.instruction and run.seed"
            )
    _write(this, told)
    return told


def _evaluate(config: EvalConfig) -> _Evaluation:
    """The evaluation, once the engines have answered what was missing of it."""
    from capo_ray.cli.eval_settings import find_directory, read_suites, write_config
    from capo_ray.flow.answering import Asked, ResponseFile, missing, suite_figures
    from capo_ray.ledger import RunLock
    from capo_ray.protocols import Sampling

    suites = {name: (suite, read_problems_of(name, suite, config)) for name, suite in read_suites(config).items()}
    asked = Asked(
        Sampling(config.eval.temperature, config.eval.top_p, config.rollout.max_response_tokens),
        config.eval.num_samples,
        config.eval.greedy and config.eval.temperature > 0,
        config.run.seed,
        config.model.max_model_len,
    )
    _check(config)
    directory = find_directory(config)
    with RunLock(directory):
        write_config(directory, config)
        file = ResponseFile.open(directory / RESPONSES_FILE)
        if any(missing(problems, asked, file) for _, problems in suites.values()):
            _answer(config, suites, asked, file)
    figures = {
        name: suite_figures([p.id for p in problems], name, asked, file) for name, (_, problems) in suites.items()
    }
    return _Evaluation(directory, config, file, figures)


def read_problems_of(name: str, suite: Suite, config: BenchConfig) -> list[Problem]:
    """A suite's problems; how its rows were read and which were passed over goes to standard error."""
    from capo_ray.problems.rows import RowReport
    from capo_ray.problems.suites import suite_problems

    report, notes = RowReport(config.data.max_bad_rows), list[str]()
    problems = suite_problems(name, suite, config, report, notes)
    for line in [*notes, *(f"passed over {row}" for row in report.bad)]:
        print(line, file=sys.stderr)
    if suite.problems and not config.eval.limit and len(problems) != suite.problems:
        print(f"{name}: {len(problems)} problems, expected {suite.problems}", file=sys.stderr)
    return problems


def _check(config: EvalConfig) -> None:
    """Raise the first reason why engines could not start, as `capo-ray train` does."""
    from capo_ray.cli import checks

    serving, model = config.serving(), config.model
    if not config.is_served:
        checks.check_model(model.path, "policy", "model", model.max_model_len)
        checks.check_engine_arguments(serving)
        checks.check_tensor_parallel(serving)
    checks.check_gpus(serving)
    if not config.cluster.joined:
        checks.check_memory(serving)


def _answer(
    config: EvalConfig, suites: dict[str, tuple[Suite, list[Problem]]], asked: Asked, file: ResponseFile
) -> None:
    from capo_ray.cli.eval_report import EvalProgress
    from capo_ray.flow.answering import missing
    from capo_ray.place.evaluate import answer_suites

    wanted = {name: missing(problems, asked, file) for name, (_, problems) in suites.items()}
    progress = EvalProgress({name: len(problems) for name, problems in wanted.items()})
    try:
        judged = {name: (suites[name][0].kind, problems) for name, problems in wanted.items() if problems}
        answer_suites(config, judged, asked, file, progress.tell)
    finally:
        progress.end()


def _other(name: str, overrides: Sequence[Override], this: _Evaluation) -> ResponseFile:
    """The responses to compare with: those of an earlier evaluation, or of a policy that is asked the same now."""
    from capo_ray.cli.eval_settings import compose_eval, differences, is_evaluation
    from capo_ray.flow.answering import ResponseFile

    folder = Path(name).expanduser()
    if is_evaluation(folder):
        if unlike := differences(folder, this.config):
            print(f"--compare: {name} was asked with another {', '.join(unlike)}", file=sys.stderr)
        return ResponseFile.open(folder / RESPONSES_FILE)
    given = [split(override) for override in overrides]
    own = [s for s in given if s.key.startswith("model.") and s.key != "model.path"]
    model = compose_eval([f"model={name}", f"suite={','.join(this.config.suite)}", *own]).model
    run = this.config.run.model_copy(update={"dir": str(this.directory.parent), "name": f"{this.directory.name}-other"})
    return _evaluate(this.config.model_copy(update={"model": model, "run": run, "resume": ""})).file


def _write(this: _Evaluation, told: dict[str, Any]) -> None:
    """The figures beside the responses: as JSON, and as a row of Markdown."""
    from capo_ray.cli.eval_report import markdown
    from capo_ray.metrics import write_summary
    from capo_ray.runs.files import replace_whole

    write_summary(this.directory / SUMMARY_FILE, told)
    row = markdown(this.config.model.path, this.figures)
    replace_whole(this.directory / TABLE_FILE, row.encode())
