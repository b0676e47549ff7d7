"""`capo-ray sft`: supervised fine-tuning of a policy or critic, from a model directory or from scratch."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_ray.cli.compose import compose_keys
from capo_ray.config.sft import SftConfig
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import METRICS_FILE, MODEL_DIR, SUMMARY_FILE

if TYPE_CHECKING:
    from capo_ray.place.sft import Trained

NUM_FIRST_LOSSES = 12
HELP = "supervised fine-tuning on questions with solutions, or on the laptop world's lessons"

EXAMPLES = """examples:
  capo-ray sft model.path=/models/Qwen2.5-1.5B data.kind=files data.path=numina.jsonl out=sft-1.5b learner.lr=1e-5
  capo-ray sft data.role=policy out=my-policy run.num_updates=200
  capo-ray sft --recipe capo_ray/assets/chains-policy/recipe.json out=my-policy run.num_updates=2000
  capo-ray sft --recipe capo_ray/assets/chains-critic/recipe.json --start out=first
  capo-ray sft --recipe capo_ray/assets/chains-critic/recipe.json model.path=first out=my-critic
  capo-ray sft resume=runs/latest run.num_updates=800
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.epilog = EXAMPLES
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config keys, as in `learner.lr=1e-4`")
    parser.add_argument("--recipe", metavar="FILE", help="start from the config in a recipe.json; overrides go on top")
    parser.add_argument("--start", action="store_true", help="the recipe of the model that --recipe's was started from")
    parser.add_argument("--dry-run", action="store_true", help="print batch, placement and memory; start nothing")
    parser.add_argument("--full", action="store_true", help="a dry run with the whole configuration")
    parser.add_argument("--json", action="store_true", help="with --dry-run: the plan as JSON")


def run(args: argparse.Namespace) -> int:
    """The exit code of `capo-ray sft`."""
    if args.json and not (args.dry_run or args.full):
        raise SystemExit("--json belongs to --dry-run; a run's figures are in its metrics.jsonl and summary.json")
    config = read_config(args.overrides, args.recipe, args.start)
    if args.dry_run or args.full:
        from capo_ray.cli import plan

        text = json.dumps(plan.to_json(config), indent=2) if args.json else plan.to_text(config, full=args.full)
        print(text, flush=True)
    check(config)
    if args.dry_run or args.full:
        return 0
    from capo_ray.place.sft import run as run_training

    trained = run_training(config)
    finish(config, trained)
    return 0


def read_config(overrides: list[str], recipe: str | None = None, start: bool = False) -> SftConfig:
    """The config of `key=value` overrides over a recipe's or the defaults; raises `ConfigError` with one sentence.

    With `start` it is the recipe of the model that the recipe's own was started from.
    """
    try:
        base = json.loads(Path(recipe).read_text()) if recipe else {"config": {}}
        if start and "start" not in base:
            raise RunFailed(f"expected --recipe of a model that was started from another (got {recipe}); drop --start")
        base = base["start"]["config"] if start else base["config"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise RunFailed(f"expected the recipe.json of a model directory, got {recipe}: {error!r}") from error
    return compose_keys(SftConfig, overrides, base)


def check(config: SftConfig) -> None:
    """Raise the first reason why this run could not go well, before anything is written."""
    from capo_ray.cli.architecture import check_adapters, check_architecture
    from capo_ray.cli.checks import check_data, check_gpus, check_model, check_run_dir, check_sequence_parallel
    from capo_ray.cli.plan_data import FIRST_ROWS
    from capo_ray.cli.settings import check_chat_templates, check_dtype, check_packages, check_prompt_template
    from capo_ray.learners.recipe import load_model
    from capo_ray.problems import asset_path, reads_hub
    from capo_ray.problems.lessons import read_lessons
    from capo_ray.problems.rows import RowReport

    out = Path(config.out).expanduser()
    if config.out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFailed(f"expected out={config.out} to be new or empty, got a directory with files: choose another")
    check_run_dir(config)
    if config.model.path:
        check_model(config.model.path, "policy", "model.path")
        check_architecture(config)
        check_adapters(config)
        check_sequence_parallel(config)
        check_prompt_template(config)
        check_chat_templates(config)
    check_dtype(config)
    check_gpus(config)
    check_packages(config)
    check_data(config)
    if not config.data.makes_problems and not reads_hub(config.data):
        read_lessons(config.data, RowReport(FIRST_ROWS), [], FIRST_ROWS)
    if config.data.kind == "chains" and config.data.role == "critic" and config.eval_problems:
        load_model(str(asset_path(config.eval_policy, "policy")))  # a missing one is told now, not after the training


def finish(config: SftConfig, trained: Trained) -> None:
    """Sum up the run; one that is through has its model written and, where the truth is known, measured."""
    from capo_ray.metrics import read_rows, write_summary

    rows = read_rows(trained.run_dir / METRICS_FILE)
    losses = [float(row["loss/objective_mean"]) for row in rows]
    told: dict[str, Any] = {
        "updates": rows[-1]["update"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "train_s": round(trained.seconds, 1),
        "stopped_early": trained.early,
    }
    words = f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {trained.seconds:.0f} s"
    if trained.early:
        words += f"; {trained.early}: go on with capo-ray sft resume={trained.run_dir}"
    else:
        out = Path(config.out).expanduser() if config.out else trained.run_dir / MODEL_DIR
        told["evaluation"] = write_model(config, trained, losses, out)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in told["evaluation"].items())
        words += f"; {figures or 'no evaluation'}; wrote {out}"
    write_summary(trained.run_dir / SUMMARY_FILE, {**told, "config": config.model_dump(mode="json")})
    print(words)


def write_model(config: SftConfig, trained: Trained, losses: list[float], out: Path) -> dict[str, float]:
    """The closing figures of the model that is now in `out`, with its recipe: a copy out of the last checkpoint."""
    from capo_ray.cli.export import copy_policy
    from capo_ray.cli.models import read_facts
    from capo_ray.cli.sft_eval import evaluate
    from capo_ray.learners.recipe import write_recipe
    from capo_ray.problems import asset_path

    if config.out and out.is_dir() and any(out.iterdir()):  # since the start, perhaps hours ago
        raise RunFailed(
            f"expected out={config.out} to be empty still, got files that came meanwhile; the model is kept: capo-ray "
            f"export {trained.run_dir} --output DIR"
        )
    if out.is_dir():  # empty, or what an earlier session of this run has made
        shutil.rmtree(out)
    copy_policy(trained.checkpoint, out)
    evaluation = evaluate(config, out)
    again = config.run.model_copy(update={"name": "", "from_zero": False, "changes_allowed": ()})
    recipe = {
        "config": config.model_copy(update={"run": again, "resume": ""}).model_dump(mode="json"),
        "seed": config.run.seed,
        "num_parameters": read_facts(out, "out").num_params,
        "first_losses": [round(loss, 6) for loss in losses[:NUM_FIRST_LOSSES]],
        "last_loss": round(losses[-1], 6),
        "train_s": round(trained.seconds, 1),
        "evaluation": evaluation,
    }
    write_recipe(out, recipe, str(asset_path(config.model.path, "policy")) if config.model.path else "")
    return evaluation
