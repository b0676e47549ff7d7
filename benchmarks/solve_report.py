"""Tables and curves of the benchmark of searches, from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solve_parts import Point

from capo_ray.evaluation import compare, estimate

Curves = dict[str, list[Point]]
WIDE = 4
"""Panels in a row."""


def read(result: Mapping[str, Any]) -> Curves:
    """The curves of a world."""
    return {name: [_point(told) for told in points] for name, points in result["curves"].items()}


def _point(told: Mapping[str, Any]) -> Point:
    rewards = {str(i): float(bit) for i, bit in enumerate(told["rewards"])}
    return Point(told["setting"], rewards, told["policy_tokens"], told["critic_tokens"], told["critic_prompt_tokens"])


def tables(result: Mapping[str, Any]) -> str:
    """Accuracy of every search and budget, and the searches by judges against rivals of as many tokens."""
    curves = read(result)
    about = f"{result['problems']} problems, one sample right {result['sampled']:.3f}"
    about += f", breadth {result['breadth']}"
    if "quality" in result:
        about += f", {result['wrong_steps_frac']:.3f} of steps wrong"
    return "\n\n".join((about, _levels(result, curves), _equal(curves)))


def _levels(result: Mapping[str, Any], curves: Curves) -> str:
    """One line for each search and judge: each setting's accuracy and tokens written (with what the critic reads)."""
    lines = [
        "| search, judge | precision, recall | n or budget: right [95%] at tokens written (and read) |",
        "|---|---|---|",
    ]
    for name, points in curves.items():
        shown = [p for p in points if p.setting & (p.setting - 1) == 0]
        cells = "; ".join(f"{p.setting}: {_right(p)} at {_tokens(p)}" for p in shown)
        quality = result.get("quality", {}).get(name.partition(", ")[2])
        told = f"{quality['precision']:.2f}, {quality['recall']:.2f}" if quality else ""
        lines.append(f"| {name} | {told} | {cells} |")
    return "\n".join(lines)


def _right(point: Point) -> str:
    told = estimate(list(point.rewards.values()))
    return f"{told.value:.3f} [{told.low:.3f}, {told.high:.3f}]"


def _tokens(point: Point) -> str:
    read = f" ({point.processed:,.0f})" if point.critic_prompt_tokens else ""
    return f"{point.written:,.0f}{read}"


def _equal(curves: Curves) -> str:
    """Each judged search against majority@n, and the navigator against best of n by the same judge."""
    lines = ["| search, judge | n or budget | tokens | rival | difference [95%], paired |", "|---|---|---|---|---|"]
    for name, points in curves.items():
        kind, _, judge = name.partition(", ")
        rivals = ["majority"] if kind == "best of n" else ["majority", f"best of n, {judge}"]
        for point in points if judge else ():
            for rival in rivals:
                other = no_cheaper(curves.get(rival, ()), point)
                if other is None:
                    continue
                told = compare(other.rewards, point.rewards).difference
                cell = f"{told.value:+.3f} [{told.low:+.3f}, {told.high:+.3f}]"
                against = f"{rival}, {other.setting} ({other.written:,.0f})"
                lines.append(f"| {name} | {point.setting} | {point.written:,.0f} | {against} | {cell} |")
    return "\n".join(lines)


def no_cheaper(points: Sequence[Point], than: Point) -> Point | None:
    """The first, and so the cheapest, that costs as many written tokens; None where none does."""
    return next((point for point in points if point.written >= than.written), None)


def draw(told: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy against tokens of policy and critic, a panel for each world and judge."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    worlds = {name: read(result) for name, result in told.items()}
    panels = [
        (world, judge)
        for world, curves in worlds.items()
        for judge in dict.fromkeys(name.partition(", ")[2] for name in curves if ", " in name)
    ]
    rows = -(-len(panels) // WIDE)
    figure, axes = pyplot.subplots(
        rows, WIDE, figsize=(3.1 * WIDE, 2.8 * rows), squeeze=False, sharex=True, sharey=True
    )
    for axis, (world, judge) in zip(axes.flat, panels, strict=False):
        curves = worlds[world]
        names = {"majority@n": "majority", "best of n": f"best of n, {judge}", "navigator": f"navigator, {judge}"}
        for colour, (label, name) in enumerate(names.items()):
            _curve(axis, curves[name], label, f"C{colour}")
        axis.axhline(told[world]["sampled"], color="grey", linestyle=":", label="one sample")
        axis.set(xscale="log", title=f"{world}: {judge}", ylim=(0, 1.02))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("right")
    for axis in axes[-1]:
        axis.set_xlabel("tokens written, policy and critic")
    axes.flat[0].legend(fontsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _curve(axis: Any, points: Sequence[Point], label: str, colour: str) -> None:
    told = [estimate(list(point.rewards.values())) for point in points]
    xs = [point.written for point in points]
    axis.plot(xs, [one.value for one in told], marker=".", color=colour, label=label)
    axis.fill_between(xs, [one.low for one in told], [one.high for one in told], color=colour, alpha=0.15)
