"""The learning curve of a run as a picture: accuracy on the left, what the judges and responses did on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capo_ray.metrics.rows import read_rows

INK, FAINT, HELD_OUT, TRAINING, AGREEMENT, LENGTH = "#1f2430", "#d9dce3", "#0b5cad", "#e07b1a", "#2a8a57", "#7a4fa3"
SMOOTHING = 5  # updates of the running mean: a point and those before it, so that no curve looks ahead
Series = tuple[list[int], list[float]]


def plot_learning_curve(metrics_path: Path, png_path: Path, title: str) -> None:
    """Write the picture of `metrics.jsonl` to `png_path`; a figure that was never logged is left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_rows(metrics_path)
    figure = Figure(figsize=(11.5, 4.4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, color=INK, fontsize=13, fontweight="bold", x=0.01, ha="left")
    _draw_accuracy(left, rows)
    _draw_judges(right, rows)
    png_path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png_path, format="png")


def _draw_accuracy(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    held_out, training = _series(rows, "eval/accuracy_frac"), _series(rows, "rollout/reward_mean")
    axes.plot(*training, color=TRAINING, linewidth=0.8, alpha=0.3)
    axes.plot(
        training[0],
        _smooth(training[1]),
        color=TRAINING,
        linewidth=1.8,
        label=f"responses of trained groups (mean of {SMOOTHING})",
    )
    band = [_series(rows, f"eval/accuracy_{end}_frac") for end in ("low", "high")]
    if band[0][0]:
        axes.fill_between(band[0][0], band[0][1], band[1][1], color=HELD_OUT, alpha=0.15, linewidth=0, zorder=1)
    greedy = _series(rows, "eval/greedy_accuracy_frac")
    if greedy[0]:
        axes.plot(*greedy, color=HELD_OUT, linewidth=1.2, linestyle="--", label="held-out problems, greedy", zorder=4)
    axes.plot(
        *held_out,
        color=HELD_OUT,
        linewidth=2.2,
        marker="o",
        markersize=5,
        label="held-out problems, 95% band",
        zorder=5,
    )
    for index in {0, len(held_out[0]) - 1} if held_out[0] else ():
        axes.annotate(
            f"{held_out[1][index]:.2f}",
            (held_out[0][index], held_out[1][index]),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
            color=HELD_OUT,
            fontsize=9,
            fontweight="bold",
        )
    _dress(axes, "Answer accuracy", "share of right answers")
    axes.set_ylim(0, 1.08)
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)


def _draw_judges(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    agreement, length = _series(rows, "critic/agreement_frac"), _series(rows, "rollout/response_tokens_mean")
    if agreement[0]:
        axes.plot(*agreement, color=AGREEMENT, linewidth=0.8, alpha=0.3)
        axes.plot(agreement[0], _smooth(agreement[1]), color=AGREEMENT, linewidth=1.8)
        _dress(axes, "Critic agreement and response length", "share of steps on which votes agree", AGREEMENT)
        low = min(agreement[1])
        axes.set_ylim(max(0.0, low - 0.5 * (1 - low) - 0.02), 1.0)
        axes = axes.twinx()
        axes.spines[["top", "left", "bottom"]].set_visible(False)
        axes.spines["right"].set_color(FAINT)
        axes.set_ylabel("tokens per response", color=LENGTH, fontsize=9.5)
        axes.tick_params(axis="y", colors=LENGTH, labelsize=9, length=0)
    else:
        _dress(axes, "Response length", "tokens per response", LENGTH)
    axes.plot(*length, color=LENGTH, linewidth=0.8, alpha=0.3)
    axes.plot(length[0], _smooth(length[1]), color=LENGTH, linewidth=1.8)
    if length[1]:
        axes.set_ylim(0, 1.35 * max(length[1]))


def _dress(axes: Any, title: str, label: str, color: str = INK) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel("update", color=INK, fontsize=9.5)
    axes.set_ylabel(label, color=color, fontsize=9.5)
    axes.tick_params(axis="x", colors=INK, labelsize=9, length=0)
    axes.tick_params(axis="y", colors=color, labelsize=9, length=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.05)


def _series(rows: Sequence[dict[str, Any]], name: str) -> Series:
    """(updates, values) of a figure where it is there and finite."""
    found = [(row["update"], row[name]) for row in rows if row.get(name) is not None]
    return [update for update, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float]) -> list[float]:
    windows = [values[max(0, i - SMOOTHING + 1) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
