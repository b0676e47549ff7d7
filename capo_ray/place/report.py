"""What a run says of itself at its end: the summary for programs, the closing table for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from capo_ray.config import TrainConfig
from capo_ray.flow import RunOutcome
from capo_ray.problems import ProblemSet
from capo_ray.runs.layout import CURVE_FILE

MAX_ROWS_SHOWN = 10

EVALUATED = ("accuracy", "accuracy_ci95", "greedy_accuracy", "greedy_accuracy_ci95")


def summarise(
    config: TrainConfig, outcome: RunOutcome, ledger: dict[str, object], wall_s: float, restarts: dict[str, float]
) -> dict[str, Any]:
    """What `summary.json` holds; `wall_s` counts earlier sessions of a resumed run too."""
    state, degrees = outcome.state, config.run.eval_temperature
    evaluated = {"initial": state.initial or {}, "final": outcome.final}
    return {
        **{f"{when}_{name}": told.get(name) for name in EVALUATED for when, told in evaluated.items()},
        "accuracy_is": f"sampled at temperature {degrees:g}" if degrees else "greedy",
        "updates": state.version,
        "trajectories": state.num_trajectories,
        "trained": state.num_trained,
        "stale": state.num_stale,
        "masked_tokens": state.num_masked_tokens,
        "too_long": state.num_too_long,
        "critiques": state.critic.num_critiques,
        "critic": state.critic.summary(),
        "ledger": ledger,
        "restarts": restarts,
        "stopped_early": outcome.stopped_early,
        "wall_s": round(wall_s + state.seconds, 1),
        "config": config.model_dump(mode="json"),
    }


def closing_rows(summary: dict[str, Any], run_dir: Path) -> list[tuple[str, str]]:
    """The closing table."""

    def show(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.3f}"

    def told(when: str, name: str) -> str:
        ci95 = summary[f"{when}_{name}_ci95"]
        return show(summary[f"{when}_{name}"]) + (f" [{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else "")

    critic = summary["critic"]
    rows = [
        ("held-out accuracy", f"{told('initial', 'accuracy')} → {told('final', 'accuracy')}"),
        ("accuracy is", summary["accuracy_is"]),
        ("greedy accuracy", f"{told('initial', 'greedy_accuracy')} → {told('final', 'greedy_accuracy')}"),
        ("updates", str(summary["updates"])),
        ("trajectories", f"{summary['trajectories']} ({summary['trained']} trained)"),
        ("wall time", f"{summary['wall_s']:.0f} s"),
    ]
    if summary["critiques"]:
        rows += [
            ("critiques", f"{summary['critiques']} ({critic['num_valid']} valid)"),
            ("critic step precision / recall", f"{show(critic['precision'])} / {show(critic['recall'])}"),
            ("after the vote", f"{show(critic['voted_precision'])} / {show(critic['voted_recall'])}"),
        ]
    if critic.get("num_groups"):
        rows.append(("what credit did", _credit_words(critic)))
    if summary["stopped_early"]:
        rows.append(("stopped early", summary["stopped_early"]))
    return [*rows, ("learning curve", str(run_dir / CURVE_FILE)), ("run", str(run_dir))]


def _credit_words(critic: dict[str, Any]) -> str:
    """How many steps were held to be wrong, how often truly where that is known, and what only steps could teach."""
    precision = critic["voted_precision"]
    truly = "" if precision is None else f", {precision:.0%} of them truly wrong"
    return (
        f"{critic['num_flagged']:,} of {critic['num_steps']:,} judged steps flagged{truly}; "
        f"{critic['num_saved']:,} of {critic['num_groups']:,} judged groups teach by their steps alone"
    )


def report_rows(problems: ProblemSet) -> None:
    """Say how rows were read, and name those that were passed over, on standard error."""
    for note in problems.notes:
        print(note, file=sys.stderr)
    for row in problems.bad_rows[:MAX_ROWS_SHOWN]:
        print(f"passed over {row}", file=sys.stderr)
    if len(problems.bad_rows) > MAX_ROWS_SHOWN:
        print(f"passed over {len(problems.bad_rows) - MAX_ROWS_SHOWN} more bad rows", file=sys.stderr)
