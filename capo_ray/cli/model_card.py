"""The card of an exported policy (README.md, as hubs show it): what it is, how it was made, how to ask it."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

import yaml
from pydantic import ValidationError

import capo_ray
from capo_ray.cli.plan import changed
from capo_ray.config import SftConfig, TrainConfig
from capo_ray.config.shipped import SHIPPED
from capo_ray.runs.reading import NoRun, Run

CARD_FILE = "README.md"


def card_of(run_dir: Path, version: int) -> str:
    """The card's text for the policy of a run's checkpoint; "" where only checkpoints are left of the run.

    Paths of this machine are told by their last name.
    """
    try:
        run = Run(run_dir)
    except NoRun:
        return ""
    settings, base = run.settings, str(run.settings.get("model", {}).get("path", ""))
    method = settings.get("credit", {}).get("method", "sft")
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["capo-ray", method]}
    if "/" in base and not PurePath(base).is_absolute() and base not in SHIPPED["policy"]:
        head["base_model"] = base
    how = "supervised fine-tuning" if method == "sft" else f"reinforcement learning, `credit={method}`"
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {run_dir.resolve().name}, version {version}",
        f"`{_name(base) or 'a policy made from scratch'}` after {version} updates of {how}, with "
        f"capo-ray {capo_ray.__version__}.",
        *_accuracy(run.summary, version),
        *_asked(settings),
        *_settings(settings),
        "The licences of the model that it was made from, and of the data, go with it.",
    ]
    return "\n\n".join(lines) + "\n"


def _accuracy(summary: dict[str, Any] | None, version: int) -> list[str]:
    """Held-out accuracy before and after, where the run's last evaluation was of this very version."""
    if not summary or summary.get("updates") != version or summary.get("final_accuracy") is None:
        return []
    rows = [("sampled" if summary.get("accuracy_is") != "greedy" else "greedy", "accuracy")]
    rows += [("greedy", "greedy_accuracy")] if summary.get("final_greedy_accuracy") is not None else []
    table = ["| held-out accuracy | before | after |", "|---|---|---|"]
    table += [
        f"| {label} | {_told(summary, 'initial', name)} | {_told(summary, 'final', name)} |" for label, name in rows
    ]
    return ["\n".join(table), f"Of the run's own held-out problems, with 95% intervals; {summary.get('accuracy_is')}."]


def _told(summary: dict[str, Any], when: str, name: str) -> str:
    value, ci95 = summary.get(f"{when}_{name}"), summary.get(f"{when}_{name}_ci95")
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else "")


def _asked(settings: dict[str, Any]) -> list[str]:
    """How the policy was asked in training: elsewhere it answers as well as here only if it is asked alike."""
    model, rollout = settings.get("model", {}), settings.get("rollout", {})
    told = {name: model[name] for name in ("chat_template", "system_prompt", "prompt_template") if model.get(name)}
    told |= {name: rollout[name] for name in ("temperature", "top_p", "max_response_tokens") if name in rollout}
    return (
        ["It was asked with", f"```yaml\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}```"]
        if told
        else []
    )


def _settings(settings: dict[str, Any]) -> list[str]:
    kind = TrainConfig if "credit" in settings else SftConfig
    try:
        overrides = changed(kind.model_validate(settings))
    except ValidationError:  # a run of another version of this package
        return []
    words = [word for word in map(_without_folders, overrides) if not word.startswith(("run.dir=", "run.name="))]
    return ["Choices, and settings other than their defaults:", "```text\n" + "\n".join(words) + "\n```"]


def _without_folders(override: str) -> str:
    key, _, value = override.partition("=")
    return f'{key}="{_name(value[1:-1])}"' if value[:2] in ('"/', '"~') else override


def _name(path: str) -> str:
    return PurePath(path).name if path.startswith(("/", "~", ".")) else path
