"""`capo-ray solve`: solutions that a policy and a critic find together, with what each of them cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import RESPONSES_FILE, SUMMARY_FILE

if TYPE_CHECKING:
    from capo_ray.config.evaluation import Suite
    from capo_ray.config.solve import SolveConfig
    from capo_ray.flow.answering import ResponseFile, Row
    from capo_ray.types import Problem

HELP = """solutions by search: steps that a critic accepts (navigator), best-of-n, majority, or a single sample

model= and critic= are choices, directories or hub names, model= also a run. Every solution is kept in
DIRECTORY/responses.jsonl with its tokens of policy and critic; what is there is not solved again: resume=DIRECTORY."""
SEARCHES = "navigator, best_of_n, majority, sample"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments and the examples."""
    parser.add_argument("overrides", nargs="*", metavar="override", help="suite=NAME, search=NAME or key=value")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--question", metavar="TEXT", help="solve this one question")
    source.add_argument(
        "--input", metavar="FILE", help="solve the questions of a file; answers, where it has them, are checked"
    )
    parser.add_argument("--lines", action="store_true", help="print each solution as a JSON line when it is found")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    examples = (
        'capo-ray solve --question "7*8+5-3" model=laptop',
        "capo-ray solve --input questions.jsonl model=/any/directory critic=/models/judge critic.rubric=every_step",
        "capo-ray solve suite=gsm8k eval.path=test.jsonl model=/any/directory critic=calculator search=best_of_n",
        "capo-ray solve --input questions.jsonl --lines search=majority search.num_samples=16",
    )
    more = "\n".join(f"         {example}" for example in examples)
    parser.epilog = f"searches: {SEARCHES} (docs/solve.md)\n\n{parser.epilog}\n{more}"


def run(args: argparse.Namespace) -> int:
    """0 once everything is solved and told."""
    from capo_ray.cli.solve_settings import compose_solve

    overrides = list(args.overrides)
    if args.question is not None:
        overrides.append(f"eval.question={args.question}")
    if args.input is not None:
        overrides += ["suite=own", f"eval.path={args.input}"]
    config = compose_solve(overrides)
    if not (config.suite or config.eval.question):
        raise RunFailed("expected --question TEXT, --input FILE or suite=NAME, got none of them")
    directory, suites, file = _solve(config, args.lines)
    from capo_ray.flow.solving import solve_figures
    from capo_ray.metrics import write_summary

    figures = {name: solve_figures(problems, name, file) for name, (_, problems) in suites.items()}
    told: dict[str, Any] = {
        "model": config.model.path,
        "search": config.search.method,
        "directory": str(directory),
        "suites": figures,
    }
    write_summary(directory / SUMMARY_FILE, told)
    if args.json:
        print(json.dumps(told), flush=True)
    elif not args.lines:
        print(_to_text(config, suites, figures, file), flush=True)
    return 0


def _solve(config: SolveConfig, lines: bool) -> tuple[Path, dict[str, tuple[str, list[Problem]]], ResponseFile]:
    """Where the solutions are, of which problems, and the file that now holds them all."""
    from capo_ray.cli.eval_report import EvalProgress
    from capo_ray.cli.eval_settings import find_directory, write_config
    from capo_ray.flow.answering import ResponseFile
    from capo_ray.flow.solving import unsolved
    from capo_ray.ledger import RunLock

    suites = _suites(config)
    _check(config)
    directory = find_directory(config)
    with RunLock(directory):
        write_config(directory, config)
        file = ResponseFile.open(directory / RESPONSES_FILE)
        left = {name: (kind, todo) for name, (kind, ps) in suites.items() if (todo := unsolved(ps, file))}
        if left:
            from capo_ray.place.evaluate import solve_suites

            progress = EvalProgress({name: len(todo) for name, (_, todo) in left.items()})
            try:
                solve_suites(config, left, file, progress.tell, _print_row if lines else lambda _: None)
            finally:
                progress.end()
    return directory, suites, file


def _suites(config: SolveConfig) -> dict[str, tuple[str, list[Problem]]]:
    """By name, the kind of verifier and the problems: one question, or those of each suite."""
    from capo_ray.cli.eval import read_problems_of
    from capo_ray.cli.eval_settings import read_suites
    from capo_ray.types import Problem

    if config.eval.question:
        problem = Problem("question", config.eval.question, "", source="question")
        return {"question": (config.verifier.kind, [problem])}

    def problems(name: str, suite: Suite) -> list[Problem]:
        from capo_ray.problems.questions import read_questions

        if name == "own" and (found := read_questions(config)):
            return found
        return read_problems_of(name, suite, config)

    return {
        name: (suite.kind or config.verifier.kind, problems(name, suite)) for name, suite in read_suites(config).items()
    }


def _check(config: SolveConfig) -> None:
    """Raise the first reason why engines and critics could not start, as `capo-ray train` does."""
    from capo_ray.cli import checks, settings
    from capo_ray.demand import models

    serving = config.serving()
    for model in models(serving):
        checks.check_model(model.name, model.shipped, model.key, model.max_model_len)
    if not config.is_served:
        checks.check_engine_arguments(serving)
        checks.check_tensor_parallel(serving)
    checks.check_gpus(serving)
    if config.search.asks_critic:
        settings.check_rubric(serving)
        if config.critic.backend == "endpoint":
            settings.check_endpoint(serving)
    if not config.cluster.joined:
        checks.check_memory(serving)


def _print_row(row: Row) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)


def _to_text(
    config: SolveConfig,
    suites: dict[str, tuple[str, list[Problem]]],
    figures: dict[str, dict[str, Any]],
    file: ResponseFile,
) -> str:
    """A single question's solution, or a line for each suite."""
    from capo_ray.cli.critique_table import to_text

    if config.eval.question:
        (row,) = file.of("question", "question").values()
        spent = ", ".join(
            f"{row[name]:g} {words}"
            for name, words in (
                ("policy_tokens", "tokens of the policy"),
                ("critic_tokens", "of the critic"),
                ("judged_steps", "steps judged"),
                ("backtracks", "taken back"),
            )
            if name in row
        )
        return f"{row['response'].strip()}\n\n{spent}"
    return f"{to_text([_line(name, told) for name, told in figures.items()])}\n\nsolutions: {file.path}"


def _line(name: str, told: dict[str, Any]) -> dict[str, object]:
    low, high = told.get("ci95", (0.0, 0.0))
    return {
        "suite": name,
        "problems": told["num_problems"],
        "right": f"{told['accuracy']:.3f} [{low:.3f}, {high:.3f}]" if "accuracy" in told else "-",
        "policy tokens": told.get("policy_tokens", 0.0),
        "critic tokens": told.get("critic_tokens", 0.0),
        "critic reads": told.get("critic_prompt_tokens", 0.0),
        "judged steps": told.get("judged_steps", 0.0),
        "taken back": told.get("backtracks", "-"),
        "budget spent": told.get("exhausted_frac", "-"),
        "cut": told["truncated_frac"],
    }
