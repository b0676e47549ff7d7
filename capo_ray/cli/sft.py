"""`capo-ray sft`: supervised fine-tuning of a policy or critic, from a model directory or from scratch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from capo_ray.config.sft import SftConfig, SftDataConfig
from capo_ray.protocols import RunFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from capo_ray.learners.supervised import Example

HELP = "supervised fine-tuning on prompt/response lines or on the laptop world's lessons"

_EPILOG = """examples:
  capo-ray sft model.path=/models/Qwen2.5-1.5B data.kind=jsonl data.path=numina.jsonl out=sft-1.5b learning_rate=1e-5
  capo-ray sft data.role=policy out=my-policy num_updates=200
  capo-ray sft --recipe capo_ray/assets/chains-policy/recipe.json out=my-policy num_updates=2000
  capo-ray sft --recipe capo_ray/assets/chains-critic/recipe.json --start out=first
  capo-ray sft --recipe capo_ray/assets/chains-critic/recipe.json model.path=first out=my-critic

exit codes: 0 trained and written, 1 the training failed, 2 the options do not fit
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.description = HELP
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config keys, as in `learning_rate=1e-4`")
    parser.add_argument("--recipe", metavar="FILE", help="start from the config in a recipe.json; overrides go on top")
    parser.add_argument("--start", action="store_true", help="the recipe of the model that --recipe's was started from")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")


def run(args: argparse.Namespace) -> int:
    """The exit code of `capo-ray sft`."""
    try:
        config = read_config(args.overrides, args.recipe, args.start)
    except ValueError as error:
        print(f"capo-ray sft: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        print(config.model_dump_json(indent=1))
        return 0
    try:
        train_and_write(config)
    except RunFailed as error:
        print(f"capo-ray sft: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("capo-ray sft: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


def read_config(overrides: list[str], recipe: str | None = None, start: bool = False) -> SftConfig:
    """The config of `key=value` overrides over a recipe's or the defaults; raises ValueError with one sentence.

    With `start` it is the recipe of the model that the recipe's own was started from.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from pydantic import ValidationError

    for item in overrides:
        if "=" not in item:
            raise ValueError(f"expected key=value, got {item!r}")
    try:
        base = json.loads(Path(recipe).read_text()) if recipe else {"config": {}}
        if start and "start" not in base:
            raise ValueError(f"expected --recipe of a model that was started from another (got {recipe}); drop --start")
        base = base["start"]["config"] if start else base["config"]
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist(overrides))
        return SftConfig.model_validate(OmegaConf.to_container(merged, resolve=True))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"expected the recipe.json of a model directory, got {recipe}: {error!r}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"expected key=value overrides, got {overrides}: {error}") from error
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, f['loc'])) or 'config'}: {f['msg']} (got {f['input']!r})" for f in error.errors()
        ]
        raise ValueError("; ".join(faults)) from error


def train_and_write(config: SftConfig) -> None:
    """Train as configured, measure where the truth is known, and write the model directory."""
    import torch

    from capo_ray.learners.recipe import load_model, losses_of_recipe, write_model
    from capo_ray.learners.supervised import train_supervised
    from capo_ray.problems import asset_path

    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise RunFailed(f"expected out={config.out} to be new or empty, got a directory with files: choose another")
    torch.set_num_threads(config.num_threads)
    model, tokenizer = build_start(config)
    torch.nn.Module.to(model, config.device)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters / 1e6:.2f}M parameters, {config.num_updates} updates of {config.batch_size}")
    if config.data.kind == "chains" and config.data.role == "critic" and config.eval_problems:
        load_model(str(asset_path(config.eval_policy, "policy")))  # a missing one is told now, not after the training
    started = time.monotonic()
    with _Progress(config.num_updates) as advance:
        losses = train_supervised(model, lesson_examples(config, tokenizer), config, advance)
    seconds = time.monotonic() - started
    evaluation = evaluate(config, model, tokenizer)
    recipe = {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "num_parameters": num_parameters,
        **losses_of_recipe(losses),
        "train_s": round(seconds, 1),
        "evaluation": evaluation,
    }
    write_model(out, model, tokenizer, recipe, start=config.model.path)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in evaluation.items())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {seconds:.0f} s; {figures or 'no evaluation'}; wrote {out}")


def build_start(config: SftConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer before the first update."""
    from capo_ray.learners.recipe import load_model, model_from_scratch
    from capo_ray.problems.chains_tokenizer import build_tokenizer

    if config.model.path:
        return load_model(config.model.path)
    if config.data.kind != "chains":
        raise RunFailed("data.kind=jsonl needs model.path, since a tokenizer cannot be made from scratch (got none)")
    tokenizer = build_tokenizer(config.data.role, config.model.max_positions)
    return model_from_scratch(config.model, tokenizer, config.seed), tokenizer


def lesson_examples(config: SftConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Example]:
    """Endless training examples, end-of-sequence included; longer ones than `max_tokens` are left out."""
    from capo_ray.learners.supervised import Example

    eos_id = tokenizer.eos_token_id
    skipped = 0
    for prompt, completion in _lessons(config, tokenizer):
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        ids = (*prompt_ids, *tokenizer.encode(completion, add_special_tokens=False), eos_id)
        if len(ids) > config.max_tokens:
            skipped += 1
            if skipped > 100 * config.batch_size:
                raise RunFailed(f"{skipped} examples are longer than max_tokens={config.max_tokens}: raise it")
            continue
        yield Example(ids, len(prompt_ids))


def _lessons(config: SftConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    """Endless pairs of prompt and completion text."""
    from capo_ray.problems.chains_lessons import critic_lessons, policy_lessons
    from capo_ray.problems.rows import read_lessons

    data, lengths = config.data, (config.data.min_steps, config.data.max_steps)
    if data.kind == "jsonl":
        return ((_frame(data, tokenizer, prompt), response) for prompt, response in read_lessons(data, config.seed))
    if data.role == "critic":
        return critic_lessons(config.seed, lengths)
    return policy_lessons(config.seed, lengths, data.error_prob)


def _frame(data: SftDataConfig, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """What the model reads of a prompt: the same text as in `capo-ray train` with the same keys."""
    if data.chat_template:
        system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
        messages = [*system, {"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    system_text = f"{data.system_prompt}\n" if data.system_prompt else ""
    return system_text + data.prompt_template.format(question=prompt)


def evaluate(config: SftConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """The closing figures on held-out chains; empty for other data."""
    from capo_ray.cli.sft_eval import critic_figures, policy_figures

    if config.data.kind != "chains" or not config.eval_problems:
        return {}
    if config.data.role == "policy":
        return policy_figures(config, model, tokenizer)
    return critic_figures(config, model, tokenizer)


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
