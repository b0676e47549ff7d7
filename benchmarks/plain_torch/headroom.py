"""Tables of a world in which greedy accuracy has something to gain, from whatever runs of it there are.

An arm was tried at several learning rates (arms `ARM_RATE`, as `grpo_1e-4`), and stands for the one that ends best, of
those with most seeds. The reference is GRPO. Another arm is set against it on the seeds that both have: what it spent
until its greedy curve, mean over seeds and joined by straight lines, first comes to what GRPO ends with, as a share of
what GRPO spent until its own curve first comes there.
"""

from __future__ import annotations

import json
import math
import random
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plain_torch.report import Row, aligned, figure, fill, pass_at_ends, reach, total_gflop

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
    tried = by_rate(runs)
    arms, problems = at_best_rate(tried), runs[0]["settings"]["eval_problems"]
    draw(arms, docs / "images" / f"headroom-{operations}-{problems}{world and '-'}{world}.png")
    where = f"{operations} operations, {problems} problems{world and ', '}{world}"
    tables = {
        f"What each arm ends with, {where}": ends_table(arms, tried),
        f"What each arm spends to come to what GRPO ends with, {where}": shares_table(arms),
    }
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


def by_rate(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Runs by arm and learning rate."""
    arms: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        arms.setdefault(re.sub(r"_\de-\d$", "", row["arm"]), {}).setdefault(rate(row), []).append(row)
    return arms


def at_best_rate(tried: dict[str, dict[str, list[Row]]]) -> dict[str, list[Row]]:
    """Each arm's runs at the rate that ends best, of those with most seeds; the arm that ends best first."""
    arms = {arm: max(rates.values(), key=lambda rows: (len(rows), end(rows))) for arm, rates in tried.items()}
    return dict(sorted(arms.items(), key=lambda item: -end(item[1])))


def end(rows: Sequence[Row], key: str = "greedy") -> float:
    """The mean of the last points."""
    return statistics.fmean(row["curve"][-1][key] for row in rows)


def rate(row: Row) -> str:
    """The learning rate of an arm."""
    words = [*row["settings"]["overrides"], *row["settings"]["arm"].split()]
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith("learner.lr=")), "1e-4")


def ends_table(arms: dict[str, list[Row]], tried: dict[str, dict[str, list[Row]]]) -> str:
    """One line per arm; the difference's interval is over problems, and wide enough for all arms together."""
    updates = [point["update"] for point in next(iter(arms.values()))[0]["curve"]]
    head = [
        "arm",
        "lr (others: their end, first seed)",
        "seeds",
        *(f"greedy: {u}" if u == 0 else str(u) for u in updates),
        "beyond GRPO",
    ]
    head += ["sampled at the end", "without a wrong step", "pass@1, 4, 16, 64 after", "critic's precision, recall"]
    lines = [line(head), "|" + "---|" * len(head)]
    for arm, rows in arms.items():
        curve = [f"{statistics.fmean(p['greedy'] for p in points):.2f}" for points in aligned(rows)]
        late = [row["figures"][-1] for row in rows]
        quality = ", ".join(figure(late, f"critic/{name}") for name in ("precision", "recall"))
        cells = [f"`{arm}`", rates_cell(rows, tried[arm]), len(rows), *curve, beyond(rows, arms[GRPO], len(arms) - 1)]
        cells += [f"{end(rows, 'accuracy'):.2f}", f"{end(rows, 'clean'):.2f}", passes(rows), quality]
        lines.append(line(cells))
    return "\n".join(lines)


def rates_cell(rows: Sequence[Row], rates: dict[str, list[Row]]) -> str:
    """The rate of these runs, and what the other rates ended with on their first seed."""
    own = rate(rows[0])
    others = [f"{name}: {runs[0]['curve'][-1]['greedy']:.2f}" for name, runs in sorted(rates.items()) if name != own]
    return f"{own} ({', '.join(others)})" if others else own


def beyond(rows: Sequence[Row], grpo: Sequence[Row], num_arms: int) -> str:
    """The difference of greedy accuracies at the end on common seeds, with a 95% interval divided among the arms."""
    ours, theirs = paired(rows, grpo)
    if ours == theirs or not ours:
        return "-"
    gap = end(ours) - end(theirs)
    count = sum(row["settings"]["eval_problems"] for row in ours)
    error = math.sqrt(sum(p * (1 - p) / count for p in (end(ours), end(theirs))))
    width = statistics.NormalDist().inv_cdf(1 - 0.025 / num_arms) * error
    return f"{gap:+.2f} [{gap - width:+.2f}, {gap + width:+.2f}]"


def passes(rows: Sequence[Row]) -> str:
    """pass@k after the last update."""
    ends = [pass_at_ends(row)[1] for row in rows]
    shared = sorted(set.intersection(*map(set, ends)), key=int)
    return " ".join(f"{statistics.fmean(end[k] for end in ends):.2f}" for k in shared)


def shares_table(arms: dict[str, list[Row]]) -> str:
    """One line per arm; a share's interval is over seeds, drawn anew in pairs."""
    head = ["arm", "seeds", "GRPO's end", *(f"share of its {name}" for name in SPENT), "undefined"]
    head += [f"updates to {level:g}" for level in LEVELS]
    lines = [line(head), "|" + "---|" * len(head)]
    for arm, rows in arms.items():
        ours, theirs = paired(rows, arms[GRPO])
        own = [spent_to(rows, SPENT["updates"], level) for level in LEVELS]
        levels = ["-" if x is None else f"{x:.0f}" for x in own]
        if not ours or arm == GRPO:
            lines.append(line([f"`{arm}`", len(rows), "-", *["-"] * len(SPENT), "-", *levels]))
            continue
        cells, undefined = [], 0.0
        for name in SPENT:
            text, undefined = share(ours, theirs, SPENT[name])
            cells.append(text)
        lines.append(line([f"`{arm}`", len(ours), f"{end(theirs):.2f}", *cells, f"{undefined:.0%}", *levels]))
    return "\n".join(lines)


def share(ours: Sequence[Row], theirs: Sequence[Row], spent: Callable[[Point], float]) -> tuple[str, float]:
    """The share with its 95% interval, and in how many resamples of the seeds there is none.

    The arm may never come there ("not reached"), or GRPO ends no higher than it began and so spent nothing ("no gain").
    """

    def once(seeds: Sequence[int]) -> float | None:
        level = end([theirs[i] for i in seeds])
        own, other = (spent_to([rows[i] for i in seeds], spent, level) for rows in (ours, theirs))
        return own / other if own is not None and other else None

    rng, seeds = random.Random(0), range(len(ours))
    found = once(seeds)
    stands = any(spent_to(rows, spent, end(theirs)) == 0 for rows in (ours, theirs))
    text = f"{found:.2f}" if found is not None else "no gain" if stands else "not reached"
    if len(ours) < 3:
        return text, float(found is None)
    drawn = [once(rng.choices(seeds, k=len(ours))) for _ in range(RESAMPLES)]
    defined = sorted(x for x in drawn if x is not None)
    if found is not None and defined:
        low, high = (defined[min(int(q * len(defined)), len(defined) - 1)] for q in (0.025, 0.975))
        text += f" [{low:.2f}, {high:.2f}]"
    return text, 1 - len(defined) / RESAMPLES


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
        [*lines, f"Spearman {rho:+.2f} over {len(found)} arms, p = {larger / RESAMPLES:.2f} (permutations)."]
    )


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The rank correlation, ties at their mean rank; 0 where one side is constant."""
    left, right = (ranks(values) for values in (xs, ys))
    if len(set(left)) == 1 or len(set(right)) == 1:
        return 0.0
    return statistics.correlation(left, right)


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0, ties at their mean."""
    return [sum(y < x for y in values) + (sum(y == x for y in values) - 1) / 2 for x in values]


def line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


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
