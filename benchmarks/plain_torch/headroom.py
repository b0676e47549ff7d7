"""Tables of a world in which greedy accuracy has something to gain, from whatever runs of it there are.

An arm stands for the best of the settings that it was tried at (`tuning.py`). The reference is GRPO. Another arm is set
against it on the seeds that both have: what it spent until its greedy curve, mean over seeds and joined by straight
lines, first comes to what GRPO ends with, as a share of what GRPO spent until its own curve first comes there.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plain_torch import intervals
from plain_torch.fidelity import spearman
from plain_torch.report import Row, aligned, figure, fill, line, pass_at_ends, reach, total_gflop
from plain_torch.tuning import Tried, at_best, by_setting, end, settings_cell, tuning_table

Point = dict[str, Any]
SPENT: dict[str, Callable[[Point], float]] = {
    "updates": lambda point: point["update"],
    "sampled tokens": lambda point: point.get("gflop_sampling", 0.0),
    "GFLOP": total_gflop,
    "CPU s": lambda point: point["cpu_s"],
}
GRPO = "grpo"
LEVELS = (0.5, 0.6, 0.7)
RESAMPLES = 2000
REAL = "real"
FIDELITY = {
    "capo": ("capo majority, W_process 2", REAL),
    "capo_w1": ("capo greedy", REAL),
    "grpo_genorm": ("grpo_genorm", REAL),
    "pure": ("pure", REAL),
    "random": ("random", "-"),
    "grpo": ("grpo and its family", "-"),
    **{arm: (arm, "-") for arm in ("acpo", "mig", "vineppo", "prime", "istar", "etpo")},
}
"""arm -> the nearest method and critic of the record of credit fidelity (W_process 3 was not measured there)"""


def write(rows: Sequence[Row], operations: int, docs: Path, fidelity: Path, world: str = "") -> dict[str, str]:
    """The tables by their titles, put in the place of those that follow these titles in docs/; and a plot.

    `world` is added to titles and to the plot's name, where the same lengths have run in several worlds.
    """
    runs = comparable(rows, operations)
    tried = by_setting(runs)
    arms, problems = at_best(tried), runs[0]["settings"]["eval_problems"]
    draw(arms, docs / "images" / f"headroom-{operations}-{problems}{world and '-'}{world}.png")
    where = f"{operations} operations, {problems} problems{world and ', '}{world}"
    tables = {
        f"What each arm ends with, {where}": ends_table(arms, tried),
        f"What each arm spends to come to what GRPO ends with, {where}": shares_table(arms),
    }
    if text := tuning_table(tried):
        tables[f"What each arm was tried at, {where}"] = text
    if text := correlation(arms, json.loads(fidelity.read_text())["methods"]):
        tables[f"Does credit fidelity go with speed, {where}"] = text
    fill(docs, tables)
    return tables


def comparable(rows: Sequence[Row], operations: int) -> list[Row]:
    """The runs in the setting that most arms have; the policy may be another."""

    def setting(row: Row) -> tuple[Any, ...]:
        alike = ("num_updates", "groups", "group_size", "num_epochs", "eval_problems")
        return tuple(row["settings"][key] for key in alike)

    asked = [row for row in rows if row["operations"] == operations]
    common = statistics.mode(setting(row) for row in asked)
    return [row for row in asked if setting(row) == common]


def ends_table(arms: dict[str, list[Row]], tried: Tried) -> str:
    """One line per arm; the difference's interval is over problems, and wide enough for all arms together.

    The quality is that of the vote that gave the credit, in the last third of the updates; where no vote flagged a step
    (GRPO-GenORM counts verdicts), that of single critiques.
    """
    updates = sorted({column[0]["update"] for rows in arms.values() for column in aligned(rows)})
    head = [
        "arm",
        "lr (others: their end)",
        "seeds",
        *(f"greedy: {u}" if u == 0 else str(u) for u in updates),
        "beyond GRPO",
    ]
    ks = counts_of([row for rows in arms.values() for row in rows])
    passed = f"pass@{', '.join(ks)} after" if ks else "pass@k after"
    head += ["sampled at the end", "without a wrong step", passed, "vote's precision, recall"]
    lines = [line(head), "|" + "---|" * len(head)]
    for arm, rows in arms.items():
        means = {points[0]["update"]: statistics.fmean(p["greedy"] for p in points) for points in aligned(rows)}
        curve = [f"{means[update]:.2f}" if update in means else "-" for update in updates]
        late = [row["figures"][-1] for row in rows]
        kind = "vote" if any("vote/precision" in figures for figures in late) else "critic"
        quality = ", ".join(figure(late, f"{kind}/{name}") for name in ("precision", "recall"))
        gap = beyond(rows, arms[GRPO], len(arms) - 1)
        cells = [f"`{arm}`", settings_cell(rows, tried[arm]), len(rows), *curve, gap]
        cells += [f"{end(rows, 'accuracy'):.2f}", f"{end(rows, 'clean'):.2f}", passes(rows, ks), quality]
        lines.append(line(cells))
    return "\n".join(lines)


def beyond(rows: Sequence[Row], grpo: Sequence[Row], num_arms: int) -> str:
    """The difference of greedy accuracies at the end on common seeds, with a 95% interval divided among the arms.

    All seeds answer the same problems, so that there are as many independent answers as problems, and no more.
    """
    ours, theirs = paired(rows, grpo)
    if ours == theirs or not ours:
        return "-"
    gap, error = end(ours) - end(theirs), error_over_problems(ours, theirs)
    width = statistics.NormalDist().inv_cdf(1 - 0.025 / num_arms) * error
    return f"{gap:+.2f} [{gap - width:+.2f}, {gap + width:+.2f}]"


def error_over_problems(rows: Sequence[Row], others: Sequence[Row], at: int = -1) -> float:
    """The standard error of the difference between what `rows` end with and the others have at a point."""
    count = rows[0]["settings"]["eval_problems"]
    greedy = end(rows), statistics.fmean(row["curve"][at]["greedy"] for row in others)
    return math.sqrt(sum(p * (1 - p) / count for p in greedy))


def counts_of(rows: Sequence[Row]) -> list[str]:
    """The k of pass@k that every run has."""
    return sorted(set.intersection(*(set(pass_at_ends(row)[1]) for row in rows)), key=int)


def passes(rows: Sequence[Row], ks: Sequence[str]) -> str:
    """pass@k after the last update."""
    return " ".join(f"{statistics.fmean(pass_at_ends(row)[1][k] for row in rows):.2f}" for k in ks)


def shares_table(arms: dict[str, list[Row]], against: str = GRPO) -> str:
    """One line per arm; intervals are over seeds, in pairs: a share has one where there are three seeds or more."""
    name = "GRPO" if against == GRPO else f"`{against}`"
    head = ["arm", "seeds", f"{name}'s end", *(f"share of its {what}" for what in SPENT), "seeds that come there"]
    head += [*(f"updates to {level:g}" for level in LEVELS), f"beyond {name}, over seeds"]
    lines = [line(head), "|" + "---|" * len(head)]
    for arm, rows in arms.items():
        ours, theirs = paired(rows, arms[against])
        own = [spent_to(rows, SPENT["updates"], level) for level in LEVELS]
        levels = ["-" if x is None else f"{x:.0f}" for x in own]
        if not ours or arm == against:
            lines.append(line([f"`{arm}`", len(rows), "-", *["-"] * len(SPENT), "-", *levels, "-"]))
            continue
        cells = [share(ours, theirs, spent) for spent in SPENT.values()]
        come = sum(spent_to([o], SPENT["updates"], end([t])) is not None for o, t in zip(ours, theirs, strict=True))
        there = f"{come} of {len(ours)}" if gains(theirs) else "-"
        gap = gap_cell(ours, theirs)
        lines.append(line([f"`{arm}`", len(ours), f"{end(theirs):.2f}", *cells, there, *levels, gap]))
    return "\n".join(lines)


def gap_cell(rows: Sequence[Row], grpo: Sequence[Row]) -> str:
    """The mean difference over seeds that both have, with Student's 95% interval over seeds."""
    pairs = zip(*paired(rows, grpo), strict=True)
    gaps = [ours["curve"][-1]["greedy"] - theirs["curve"][-1]["greedy"] for ours, theirs in pairs]
    if len(gaps) < 2:
        return f"{gaps[0]:+.2f} (one seed)" if gaps else "-"
    low, high = intervals.of_mean(gaps)
    return f"{statistics.fmean(gaps):+.2f} [{low:+.2f}, {high:+.2f}]"


def share(ours: Sequence[Row], theirs: Sequence[Row], spent: Callable[[Point], float]) -> str:
    """The share with its 95% interval over seeds.

    "no clear gain": GRPO itself does not surely end above its beginning, so that its end is no goal. "not reached": the
    mean of the arm never comes there. "hangs on a seed": without one of the seeds it would not, or GRPO gains nothing.
    """
    if not gains(theirs):
        return "no clear gain"

    def once(seeds: Sequence[int]) -> float:
        level = end([theirs[i] for i in seeds])
        own, other = (spent_to([rows[i] for i in seeds], spent, level) for rows in (ours, theirs))
        return own / other if own is not None and other else math.inf

    found = once(range(len(ours)))
    if found == math.inf:
        return "not reached"
    if len(ours) < 3:
        return f"{found:.2f}"
    around = intervals.of_ratio(once, len(ours))
    return f"{found:.2f} [{around[0]:.2f}, {around[1]:.2f}]" if around else f"{found:.2f} (hangs on a seed)"


def gains(rows: Sequence[Row]) -> bool:
    """Whether these runs surely (97.5%) end above their beginning: over seeds, or over problems where there is one."""
    if len(rows) > 1:
        return intervals.of_mean([row["curve"][-1]["greedy"] - row["curve"][0]["greedy"] for row in rows])[0] > 0
    gap = rows[0]["curve"][-1]["greedy"] - rows[0]["curve"][0]["greedy"]
    return gap > 1.96 * error_over_problems(rows, rows, at=0)


def spent_to(rows: Sequence[Row], spent: Callable[[Point], float], level: float) -> float | None:
    """What was spent when the mean greedy curve first came to a level."""
    curve = [
        (statistics.fmean(map(spent, points)), statistics.fmean(p["greedy"] for p in points))
        for points in aligned(rows)
    ]
    return reach(curve, level)


def paired(rows: Sequence[Row], others: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The runs of both on the seeds that both have, in the same order."""
    left, right = ({row["seed"]: row for row in part} for part in (rows, others))
    seeds = sorted(left.keys() & right.keys())
    return [left[seed] for seed in seeds], [right[seed] for seed in seeds]


def correlation(arms: dict[str, list[Row]], methods: Sequence[dict[str, Any]]) -> str:
    """A table of both, and Spearman's coefficient with the share of permutations that have as large a one."""
    found = []
    for arm, rows in arms.items():
        name, critic = FIDELITY.get(arm, ("", ""))
        # One vote, as the arms here have.
        same = [m for m in methods if (m["method"], m["critic"]) == (name, critic) and m["k"] in (0, 1)]
        if same:
            speed = statistics.fmean(p["greedy"] for row in rows for p in row["curve"][1:])
            found.append((arm, same[0]["auc_over_all"], speed))
    if len(found) < 5:
        return ""
    rho = spearman([x for _, x, _ in found], [y for _, _, y in found])
    rng, speeds = random.Random(0), [y for _, _, y in found]
    larger = 0
    for _ in range(RESAMPLES):
        larger += abs(spearman([x for _, x, _ in found], rng.sample(speeds, len(speeds)))) >= abs(rho) - 1e-12
    lines = [line(["arm", "AUC over all steps", "mean greedy accuracy over the run"]), "|---|---|---|"]
    lines += [line([f"`{arm}`", f"{x:.2f}", f"{y:.2f}"]) for arm, x, y in found]
    return "\n".join(
        [*lines, "", f"Spearman {rho:+.2f} over {len(found)} arms, p = {larger / RESAMPLES:.2f} (permutations)."]
    )


def draw(arms: dict[str, list[Row]], path: Path) -> None:
    """Greedy curves beside pass@k before and after: what only sharpens raises pass@1 towards what k finds already."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8))
    colours = pyplot.get_cmap("tab20")
    for number, (arm, rows) in enumerate(arms.items()):
        points = aligned(rows)
        label, colour = f"{arm} ({len(rows)})", colours(number % 20)
        style = "--" if number >= 10 else "-"
        means = [statistics.fmean(p["greedy"] for p in column) for column in points]
        left.plot([column[0]["update"] for column in points], means, style, color=colour, label=label)
        before, after = pass_at_ends(rows[0])
        ks = sorted(after, key=int)
        if number == 0:
            right.plot(list(map(int, ks)), [before[k] for k in ks], ":", color="black", linewidth=2.5, label="before")
        values = [statistics.fmean(pass_at_ends(row)[1][k] for row in rows) for k in ks]
        right.plot(list(map(int, ks)), values, style, color=colour, marker=".")
    left.set(xlabel="updates", ylabel="held-out accuracy, greedy", ylim=(0, 1))
    right.set(xscale="log", xlabel="k", ylabel="held-out pass@k after the last update", ylim=(0, 1.02))
    right.set_xticks([1, 4, 16, 64], labels=["1", "4", "16", "64"])
    right.legend(fontsize=8)
    left.legend(fontsize=7, ncols=2)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
