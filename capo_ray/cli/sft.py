"""`capo-ray sft`: supervised fine-tuning of a policy or critic, from a model directory or from scratch."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from capo_ray.cli.compose import compose_keys
from capo_ray.config.sft import SftConfig
from capo_ray.protocols import RunFailed

if TYPE_CHECKING:
    from capo_ray.engines import HfTokenizer
    from capo_ray.learners.supervised import Example

HELP = "supervised fine-tuning on prompt/response lines or on the laptop world's lessons"

_EPILOG = """examples:
  capo-ray sft model.path=/models/Qwen2.5-1.5B data.kind=jsonl data.path=numina.jsonl out=sft-1.5b learner.lr=1e-5
  capo-ray sft data.role=policy out=my-policy num_updates=200
  capo-ray sft --recipe capo_ray/assets/chains-policy/recipe.json out=my-policy num_updates=2000
  capo-ray sft --recipe capo_ray/assets/chains-critic/recipe.json --start out=first
  capo-ray sft --recipe capo_ray/assets/chains-critic/recipe.json model.path=first out=my-critic
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = HELP
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config keys, as in `learner.lr=1e-4`")
    parser.add_argument("--recipe", metavar="FILE", help="start from the config in a recipe.json; overrides go on top")
    parser.add_argument("--start", action="store_true", help="the recipe of the model that --recipe's was started from")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")


def run(args: argparse.Namespace) -> int:
    """The exit code of `capo-ray sft`."""
    config = read_config(args.overrides, args.recipe, args.start)
    if args.dry_run:
        print(config.model_dump_json(indent=1))
    else:
        train_and_write(config)
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


def train_and_write(config: SftConfig) -> None:
    """Train as configured, measure where the truth is known, and write the model directory."""
    from capo_ray.learners.recipe import load_model, losses_of_recipe, write_recipe
    from capo_ray.learners.supervised import build_learner, supervised_updates
    from capo_ray.problems import asset_path

    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise RunFailed(f"expected out={config.out} to be new or empty, got a directory with files: choose another")
    if config.data.kind == "chains" and config.data.role == "critic" and config.eval_problems:
        load_model(str(asset_path(config.eval_policy, "policy")))  # a missing one is told now, not after the training
    losses: list[float] = []
    with start_directory(config) as start:
        examples = lesson_examples(config, load_tokenizer(start))
        learner = build_learner(config, start)
        started = time.monotonic()
        with _Progress(config.num_updates) as advance:
            for loss in supervised_updates(learner, examples, config):
                losses.append(loss)
                advance(len(losses), loss)
        seconds = time.monotonic() - started
        out.mkdir(parents=True, exist_ok=True)
        learner.snapshot().export(str(out))
    evaluation = evaluate(config)
    recipe = {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "num_parameters": learner.num_parameters,
        **losses_of_recipe(losses),
        "train_s": round(seconds, 1),
        "evaluation": evaluation,
    }
    write_recipe(out, recipe, start=config.model.path)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in evaluation.items())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {seconds:.0f} s; {figures or 'no evaluation'}; wrote {out}")


@contextmanager
def start_directory(config: SftConfig) -> Iterator[str]:
    """The model directory (or hub name) that training starts from; one made from scratch goes at the end."""
    from capo_ray.learners.recipe import model_from_scratch
    from capo_ray.problems.chains_tokenizer import build_tokenizer

    if config.model.path:
        yield config.model.path
        return
    if config.data.kind != "chains":
        raise RunFailed("data.kind=jsonl needs model.path, since a tokenizer cannot be made from scratch (got none)")
    tokenizer = build_tokenizer(config.data.role, config.model.max_positions)
    with tempfile.TemporaryDirectory() as directory:
        model_from_scratch(config.model, tokenizer, config.seed).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        yield directory


def load_tokenizer(path: str) -> HfTokenizer:
    """The tokenizer of a Hugging Face directory or hub name; RunFailed with a sentence otherwise."""
    from capo_ray.engines import HfTokenizer

    try:
        return HfTokenizer(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunFailed(f"expected a Hugging Face model directory or hub name, got {path!r}: {reason}") from error


def lesson_examples(config: SftConfig, tokenizer: HfTokenizer) -> Iterator[Example]:
    """Endless training examples, end-of-sequence included; longer ones than `max_tokens` are left out."""
    from capo_ray.learners.supervised import Example

    skipped = 0
    for prompt_ids, completion in _lessons(config, tokenizer):
        # A completion is trusted: what it spells of control tokens (`<think>`) the policy shall learn to write.
        ids = (*prompt_ids, *tokenizer.encode(completion), tokenizer.eos_id)
        if len(ids) > config.max_tokens:
            skipped += 1
            if skipped > 100 * config.batch_size:
                raise RunFailed(f"{skipped} examples are longer than max_tokens={config.max_tokens}: raise it")
            continue
        yield Example(ids, len(prompt_ids))


def _lessons(config: SftConfig, tokenizer: HfTokenizer) -> Iterator[tuple[tuple[int, ...], str]]:
    """Endless pairs of prompt ids and completion text; a file's prompts are framed as in `capo-ray train`."""
    from capo_ray.problems.chains_lessons import critic_lessons, policy_lessons
    from capo_ray.problems.rows import read_lessons
    from capo_ray.prompts import build_policy_prompt

    data, lengths = config.data, (config.data.min_steps, config.data.max_steps)
    if data.kind == "jsonl":
        for question, response in read_lessons(data, config.seed):
            framed = build_policy_prompt(
                tokenizer,
                question,
                system_prompt=data.system_prompt,
                template=data.prompt_template,
                chat_template=data.chat_template,
            )
            yield framed, response
        return
    if data.role == "critic":
        lessons = critic_lessons(config.seed, lengths)
    else:
        lessons = policy_lessons(config.seed, lengths, data.error_prob)
    yield from ((tuple(tokenizer.encode(prompt)), completion) for prompt, completion in lessons)


def evaluate(config: SftConfig) -> dict[str, float]:
    """The closing figures of what was written, on held-out chains; empty for other data."""
    from capo_ray.cli.sft_eval import critic_figures, policy_figures
    from capo_ray.learners.recipe import load_model

    if config.data.kind != "chains" or not config.eval_problems:
        return {}
    figures = policy_figures if config.data.role == "policy" else critic_figures
    return figures(config, *load_model(config.out))


class _Progress:
    """A progress bar over updates (plain lines where the output is no terminal); entering gives the callback."""

    def __init__(self, num_updates: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console()
        self.num_updates, self.live = num_updates, console.is_terminal
        self.bar = Progress(
            TextColumn("sft"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("sft", total=num_updates, loss="-")

    def __enter__(self) -> Callable[[int, float], None]:
        if self.live:
            self.bar.start()
        return self._advance

    def _advance(self, update: int, loss: float) -> None:
        if self.live:
            self.bar.update(self.task, completed=update, loss=f"{loss:.3f}")
        elif update % 25 == 0:
            print(f"update {update}/{self.num_updates} loss {loss:.4f}", flush=True)

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()
