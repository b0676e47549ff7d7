"""One look at a world with headroom: the main arms on chains of every length, each seed a line; every arm's end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from plain_torch.headroom import GRPO, SPENT, comparable, gap_cell, paired, share
from plain_torch.report import PAGES, Row, aligned, fill, line
from plain_torch.tuning import at_best, by_setting, end

MAIN = {"capo_w1": "CAPO, W_process 1", "capo": "CAPO, W_process 3", GRPO: "GRPO"}
"""The arms shown, and what they are called there."""
FIRST, SHARES = "capo_w1", ("updates", "GFLOP")
"""The arm whose shares of what GRPO spends are shown, and which."""


def write(rows: Sequence[Row], docs: Path, world: str = "") -> dict[str, str]:
    """The table by its title, put in its place in docs/, and a picture.

    Where one length alone has run there is no picture, and the table only where a page has its title.
    """
    title = f"Ends by chain length{world and ', '}{world}"
    lengths = {n: at_best(by_setting(comparable(rows, n))) for n in sorted({row["operations"] for row in rows})}
    lengths = {n: arms for n, arms in lengths.items() if GRPO in arms}
    if len(lengths) < 2 and not any(f"*{title}*" in (docs / page).read_text(encoding="utf-8") for page in PAGES):
        return {}
    if len(lengths) > 1:
        draw(lengths, docs / "images" / f"headroom-lengths{world and '-'}{world}.png")
    head = ["operations", "greedy before", "right samples without a wrong step, before"]
    head += [f"{name}: ends by seed, mean" for name in MAIN.values()]
    head += [f"{MAIN[arm]} beyond GRPO" for arm in MAIN if arm != GRPO]
    head += [f"{MAIN[FIRST]}: share of GRPO's {name} to GRPO's end" for name in SHARES]
    lines = [line(head), "|" + "---|" * len(head)]
    for operations, arms in lengths.items():
        before = statistics.fmean(row["curve"][0]["greedy"] for row in arms[GRPO])
        ends = [ends_cell(arms.get(arm, [])) for arm in MAIN]
        gaps = [gap_cell(arms.get(arm, []), arms[GRPO]) for arm in MAIN if arm != GRPO]
        ours, theirs = paired(arms.get(FIRST, []), arms[GRPO])
        shares = [share(ours, theirs, SPENT[name]) if ours else "-" for name in SHARES]
        lines.append(line([operations, f"{before:.2f}", f"{sound_frac(arms[GRPO]):.0%}", *ends, *gaps, *shares]))
    tables = {title: "\n".join(lines), f"Every arm by chain length{world and ', '}{world}": every_arm(lengths)}
    fill(docs, tables)
    return tables


def every_arm(lengths: dict[int, dict[str, list[Row]]]) -> str:
    """One line per arm, by its mean difference to GRPO: its end, seeds, and that difference on the seeds of both."""
    names = sorted({arm for arms in lengths.values() for arm in arms})
    gaps = {arm: [gap for arms in lengths.values() if (gap := gap_of(arms, arm)) is not None] for arm in names}
    head = ["arm", *(f"{operations} operations" for operations in lengths)]
    lines = [line(head), "|" + "---|" * len(head)]
    for arm in sorted(names, key=lambda arm: -statistics.fmean(gaps[arm] or [-1.0])):
        cells = [length_cell(arms, arm) for arms in lengths.values()]
        lines.append(line([f"`{arm}`", *cells]))
    return "\n".join(lines)


def length_cell(arms: dict[str, list[Row]], arm: str) -> str:
    """What an arm ends with, of how many seeds, and how far that is from GRPO's end on the same ones."""
    if arm not in arms:
        return "-"
    gap = gap_of(arms, arm)
    beside = "" if gap is None or arm == GRPO else f" {gap:+.2f}"
    return f"{end(arms[arm]):.2f} ({len(arms[arm])}){beside}"


def gap_of(arms: dict[str, list[Row]], arm: str) -> float | None:
    """An arm's end less GRPO's, mean over the seeds of both."""
    ours, theirs = paired(arms.get(arm, []), arms[GRPO])
    return end(ours) - end(theirs) if ours else None


def sound_frac(rows: Sequence[Row]) -> float:
    """The share of the right answers, sampled before the first update, that no wrong step precedes."""
    right, clean = (sum(row["curve"][0][name] for row in rows) for name in ("accuracy", "clean"))
    return float(clean / right) if right else 0.0


def ends_cell(rows: Sequence[Row]) -> str:
    """What each seed ends with, and their mean."""
    if not rows:
        return "-"
    ends = [row["curve"][-1]["greedy"] for row in sorted(rows, key=lambda row: row["seed"])]
    return " ".join(f"{x:.2f}" for x in ends) + f"; **{end(rows):.2f}**"


def draw(lengths: dict[int, dict[str, list[Row]]], path: Path) -> None:
    """A panel for each length: thin lines are seeds, thick ones their means."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, panels = pyplot.subplots(1, len(lengths), figsize=(3.6 * len(lengths), 3.8), sharey=True, squeeze=False)
    for panel, (operations, arms) in zip(panels[0], lengths.items(), strict=True):
        for arm, colour in zip(MAIN, ("tab:green", "tab:blue", "tab:red"), strict=True):
            if arm not in arms:
                continue
            for row in arms[arm]:
                updates = [point["update"] for point in row["curve"]]
                panel.plot(updates, [point["greedy"] for point in row["curve"]], color=colour, alpha=0.3, linewidth=1)
            columns = aligned(arms[arm])
            means = [statistics.fmean(point["greedy"] for point in column) for column in columns]
            label = f"{MAIN[arm]} (seeds: {len(arms[arm])})"
            panel.plot([column[0]["update"] for column in columns], means, color=colour, linewidth=2.5, label=label)
        panel.set(title=f"{operations} operations", xlabel="updates", ylim=(0, 1))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, loc="upper left")
    panels[0][0].set_ylabel("held-out accuracy, greedy")
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
