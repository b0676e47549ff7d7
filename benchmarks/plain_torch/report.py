"""Tables and curves of the learning benchmark, from whatever runs there are.

An arm reaches an accuracy where the mean of its seeds' held-out curves, joined by straight lines, first crosses it.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Curve = list[tuple[float, float]]  # (what was spent, accuracy), seeds averaged

COLOURS = {
    "grpo": "black", "capo_majority": "tab:red", "capo_intersection": "tab:orange", "capo_union": "tab:pink",
    "capo_average": "tab:brown", "capo_greedy": "tab:olive", "acpo": "tab:blue", "mig": "tab:cyan",
    "prime": "tab:purple", "random": "tab:gray", "shuffled": "silver", "oracle": "tab:green",
}  # fmt: skip


def total_gflop(point: dict[str, float]) -> float:
    """Everything computed up to a point of a curve."""
    return sum(value for name, value in point.items() if name.startswith("gflop_"))


def aligned(rows: Sequence[Row]) -> list[list[dict[str, float]]]:
    """The points of all runs at each update after which every one of them was evaluated."""
    by_update = [{point["update"]: point for point in row["curve"]} for row in rows]
    shared = sorted(set.intersection(*map(set, by_update)))
    return [[points[update] for points in by_update] for update in shared]


def mean_curve(rows: Sequence[Row], spent: str, key: str = "accuracy") -> Curve:
    """The mean over seeds at each evaluation that all of them have; `spent` is problems, gflop, cpu_s or update."""
    settings = rows[0]["settings"]
    curve = []
    for points in aligned(rows):
        cost = {
            "update": points[0]["update"],
            "problems": points[0]["update"] * settings["groups"],
            "gflop": statistics.fmean(map(total_gflop, points)),
            "cpu_s": statistics.fmean(p["cpu_s"] for p in points),
        }[spent]
        curve.append((cost, statistics.fmean(p[key] for p in points)))
    return curve


def reach(curve: Curve, accuracy: float) -> float | None:
    """What was spent when the curve first crossed `accuracy`, or None where it never does."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 >= accuracy:
            return x0 if y0 >= accuracy else x0 + (x1 - x0) * (accuracy - y0) / (y1 - y0)
    return None


Compared = tuple[int, int, int, int]


def comparisons(rows: Sequence[Row]) -> dict[Compared, dict[str, list[Row]]]:
    """Runs that may be compared, by (operations, groups, group size, passes), then by arm; of each seed the longest."""
    found: dict[Compared, dict[str, list[Row]]] = {}
    for row in rows:
        settings = row["settings"]
        key = (row["operations"], settings["groups"], settings["group_size"], settings["num_epochs"])
        found.setdefault(key, {}).setdefault(row["arm"], []).append(row)
    return {key: {arm: longest(runs) for arm, runs in arms.items()} for key, arms in sorted(found.items())}


def longest(rows: Sequence[Row]) -> list[Row]:
    """One run per seed: of several the one with the most updates, of those the one evaluated most often."""
    ordered = sorted(rows, key=lambda row: (row["curve"][-1]["update"], len(row["curve"])))
    return list({row["seed"]: row for row in ordered}.values())


def titled(rows: Sequence[Row]) -> dict[str, str]:
    """One Markdown table per comparison, by its title."""
    return {
        f"{operations} operations, {groups} x {size} responses an update, passes over them: {passes}": table(arms)
        for (operations, groups, size, passes), arms in comparisons(rows).items()
    }


PAGES = ("results.md", "results_arms.md", "history.md")
"""Pages of docs/ that hold tables of learning: what is claimed, every arm, and what was measured before."""


def fill(docs: Path, tables: dict[str, str]) -> None:
    """Puts tables in the place of those that follow their titles, on whichever page has the title."""
    for page in (docs / name for name in PAGES):
        text = page.read_text(encoding="utf-8")
        for title, fresh in tables.items():
            before, found, after = text.partition(f"*{title}*\n\n")
            if found:
                text = f"{before}{found}{fresh}\n\n" + re.sub(r"^(\|.*\n)*(\nSpearman.*\n)?", "", after).lstrip()
        page.write_text(text, encoding="utf-8")


def line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


LEVELS = (0.5, 0.7, 0.8, 0.9)
HEADER = (
    "| arm | seeds | updates | accuracy at the end (range) | greedy: before | at the end "
    "| without a wrong step | updates to GRPO's end "
    f"| share of its updates | GFLOP | CPU s | {' | '.join(f'updates to {level:g}' for level in LEVELS)} "
    "| vote's precision, recall: first third | last third |"
)


def table(arms: dict[str, list[Row]]) -> str:
    """One line per arm; shares are of what GRPO itself took to first reach the same accuracy, on the same seeds."""
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    for arm in in_order(arms):
        grpo, rows = on_equal_seeds(arms, arm)
        lines.append(f"| `{arm}` | " + " | ".join(cells(rows, grpo)) + " |")
    return "\n".join(lines)


def to_level(rows: Sequence[Row], grpo: Sequence[Row], level: float) -> str:
    """The updates to an accuracy; where GRPO reached it too, the shares of its updates and of its GFLOP."""
    ours = reach(mean_curve(rows, "update"), level)
    if ours is None:
        return "-"
    shares = []
    for spent in ("update", "gflop"):
        own, theirs = reach(mean_curve(rows, spent), level), reach(mean_curve(grpo, spent), level) if grpo else None
        if own and theirs and grpo != rows:
            shares.append(f"{own / theirs:.2f}")
    return f"{ours:.0f}" + (f" ({', '.join(shares)})" if shares else "")


def in_order(arms: dict[str, list[Row]]) -> list[str]:
    """The main arms as they are listed above, then the others."""
    return [name for name in COLOURS if name in arms] + [name for name in arms if name not in COLOURS]


def on_equal_seeds(arms: dict[str, list[Row]], arm: str) -> tuple[list[Row], list[Row]]:
    """The runs of GRPO and of an arm on the seeds that both have; all of the arm's where there is none."""
    seeds = {row["seed"] for row in arms[arm]} & {row["seed"] for row in arms.get("grpo", [])}
    if not seeds:
        return [], arms[arm]
    grpo, rows = ([row for row in arms[name] if row["seed"] in seeds] for name in ("grpo", arm))
    return grpo, rows


def cells(rows: Sequence[Row], grpo: Sequence[Row]) -> list[str]:
    """The cells of one arm beside the runs of GRPO on its seeds."""
    ends = finals(rows, "accuracy")
    early, late = ([row["figures"][at] for row in rows] for at in (0, -1))
    return [
        str(len(rows)),
        str(aligned(rows)[-1][0]["update"]),
        f"{statistics.fmean(ends):.2f} ({min(ends):.2f} to {max(ends):.2f})",
        *greedy(rows),
        f"{statistics.fmean(finals(rows, 'clean')):.2f}",
        *costs(rows, grpo),
        *(to_level(rows, grpo, level) for level in LEVELS),
        *(f"{figure(f, 'vote/precision')}, {figure(f, 'vote/recall')}" for f in (early, late)),
    ]


def greedy(rows: Sequence[Row]) -> list[str]:
    """Accuracy without sampling before the first update and at the end, where all runs have it."""
    if not all("greedy" in row["curve"][0] for row in rows):
        return ["-", "-"]
    before = statistics.fmean(row["curve"][0]["greedy"] for row in rows)
    return [f"{before:.2f}", f"{statistics.fmean(finals(rows, 'greedy')):.2f}"]


def pass_table(rows: Sequence[Row]) -> str:
    """For each run that has them pass@k before the first update and after the last: sharpening, or more."""
    lines = []
    for row in rows:
        ends = pass_at_ends(row)
        for k in sorted(ends[0].keys() & ends[1].keys(), key=int):
            lines.append(f"| `{row['arm']}` | {row['seed']} | {k} | {ends[0][k]:.3f} | {ends[1][k]:.3f} |")
    return "\n".join(["| arm | seed | k | pass@k before | after |", "|---|---|---|---|---|", *lines]) if lines else ""


def pass_at_ends(row: Row) -> list[dict[str, float]]:
    """pass@k before the first update and after the last; empty where it was not measured."""
    return [row["curve"][at].get("pass_at", {}) for at in (0, -1)]


def costs(rows: Sequence[Row], grpo: Sequence[Row]) -> list[str]:
    """Updates to GRPO's final accuracy, and what they cost in updates, GFLOP and CPU seconds as ratios to GRPO's."""
    if not grpo:
        return ["-"] * 4
    target = statistics.fmean(finals(grpo, "accuracy"))
    updates = reach(mean_curve(rows, "update"), target)
    if updates is None:
        return ["not reached", "-", "-", "-"]
    ratios = []
    for spent in ("update", "gflop", "cpu_s"):
        ours, theirs = reach(mean_curve(rows, spent), target), reach(mean_curve(grpo, spent), target)
        ratios.append(f"{ours / theirs:.2f}" if ours is not None and theirs else "-")
    return [f"{updates:.1f}", *ratios]


def finals(rows: Sequence[Row], key: str) -> list[float]:
    """For each run the mean of the last two evaluations that all have."""
    return [statistics.fmean(point[key] for point in points) for points in zip(*aligned(rows)[-2:], strict=True)]


def figure(figures: Sequence[dict[str, float]], name: str) -> str:
    values = [f[name] for f in figures if name in f]
    return f"{statistics.fmean(values):.2f}" if values else "-"


def draw(rows: Sequence[Row], docs: Path) -> None:
    """Writes docs/images/learning-K….png: accuracy against problems seen and against total compute.

    Comparisons of fewer than three arms are tables alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (docs / "images").mkdir(exist_ok=True)
    for (operations, groups, size, passes), arms in comparisons(rows).items():
        if "grpo" not in arms or len(arms) < 3:
            continue
        figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
        for arm, colour in COLOURS.items():
            if arm in arms:
                for axis, spent in zip(axes, ("problems", "gflop"), strict=True):
                    plot_arm(axis, arms[arm], arm, colour, spent)
        axes[0].set(xlabel=f"problems seen ({size} responses each)", ylabel="held-out accuracy, sampled")
        axes[1].set(xlabel="GFLOP: sampling, training, critic, reward model")
        axes[0].legend(fontsize=7, ncols=2, loc="lower right")
        counts = sorted({len(r) for r in arms.values()})
        seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        figure.suptitle(
            f"Chains of {operations} operations, {groups} x {size} responses, passes: {passes}. Mean of {seeds} seeds "
            f"(range shaded for grpo and capo_majority), one of 2 CPU cores",
            fontsize=9,
        )
        for axis in axes:
            axis.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(docs / "images" / f"learning-{operations}-{groups}x{size}x{passes}.png", dpi=110)
        pyplot.close(figure)


def draw_passes(rows: Sequence[Row], path: Path) -> None:
    """Writes pass@k before the first update and after the last, means over seeds: sharpening raises k = 1 alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    for number, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        for at, style in ((0, "--"), (-1, "-")):
            ends = [row["curve"][at]["pass_at"] for row in rows if row["arm"] == arm]
            ks = sorted(set.intersection(*map(set, ends)), key=int)
            means = [statistics.fmean(end[k] for end in ends) for k in ks]
            axis.plot(list(map(int, ks)), means, style, marker="o", color=f"C{number}", label=f"{arm}, {WHEN[at]}")
    axis.set(xscale="log", xlabel="k", ylabel="held-out pass@k", ylim=(0, 1.02), xticks=[1, 4, 16, 64])
    axis.set_xticklabels(["1", "4", "16", "64"])
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


WHEN = {0: "before", -1: "after"}


def plot_arm(axis: Any, rows: Sequence[Row], arm: str, colour: str, spent: str) -> None:
    """One arm's mean curve, and the range of its seeds for the two that the benchmark is about."""
    curve = mean_curve(rows, spent)
    style = "--" if arm in ("random", "shuffled", "oracle") else "-"
    wide = 2.2 if arm in ("grpo", "capo_majority") else 1.2
    xs, ys = zip(*curve, strict=True)
    axis.plot(xs, ys, color=colour, linestyle=style, linewidth=wide, label=f"{arm} ({len(rows)})")
    if arm in ("grpo", "capo_majority") and len(rows) > 1:
        bands = [[p["accuracy"] for p in points] for points in aligned(rows)]
        axis.fill_between(xs, list(map(min, bands)), list(map(max, bands)), color=colour, alpha=0.15)
