"""The live page of a run, drawn from what it has told: figures, their course, one judged response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from capo_ray.steps.visible import visible

BARS = "▁▂▃▄▅▆▇█"
MAX_STEPS = 6
"""Of a judged response: the first flagged one stands among them."""
WIDEST = 100
ROWS = (
    ("held-out accuracy", "held_out"),
    ("reward of trained groups", "reward"),
    ("critic agreement", "agreement"),
    ("critic precision", "precision"),
    ("steps flagged", "flagged"),
    ("loss", "loss"),
)


def draw(
    figures: Mapping[str, Any],
    courses: Mapping[str, Sequence[float]],
    title: str,
    clock: str,
    spinner: Spinner | None,
    has_blocks: bool,
) -> RenderableType:
    """The page: phase and time, progress, figures with their course, queues, the last judged response.

    Without a spinner it is the last one of a run, which stays.
    """
    done, total = figures["update"], figures["num_updates"]
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(ratio=1)
    head.add_column(justify="right", no_wrap=True)
    phase = Text(figures["phase"], style="cyan")
    if spinner is not None:
        spinner.update(text=phase)
    head.add_row(spinner or phase, Text(clock, style="dim"))
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    bar.add_row(ProgressBar(total=max(total, 1), completed=done), f"{done}/{total or '?'} updates")
    body = Table.grid(padding=(0, 2))
    body.add_column(style="dim", no_wrap=True)
    body.add_column(justify="right", no_wrap=True)
    body.add_column(no_wrap=True, style="cyan")
    for label, name in ROWS:
        if name in figures:
            course = sparkline(list(courses.get(name, ()))) if has_blocks else ""
            body.add_row(label, f"{figures[name]:.3f}", course)
    if idle := figures.get("idle"):
        shares = "  ".join(f"{tier} {share:.0%}" for tier, share in idle.items())
        body.add_row("idle", "", Text(shares, style="default"))
    if figures["queues"]:
        counts = "  ".join(f"{name} {count}" for name, count in figures["queues"].items())
        body.add_row("queues", "", Text(counts, style="default"))
    parts: list[RenderableType] = [head, bar, body]
    if judged := figures.get("judged"):
        parts.append(_response(judged, has_blocks))
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim")


def _response(judged: Mapping[str, Any], has_marks: bool) -> Text:
    """A judged response step by step; what the vote holds to be wrong is marked, and says so without colours too."""
    steps = judged["steps"]
    flagged = [k for k, (_, weight) in enumerate(steps) if weight > 0]
    first = max(0, min((flagged or [0])[0] - 1, len(steps) - MAX_STEPS))
    text = Text("last judged  ", style="dim", no_wrap=True, overflow="ellipsis")
    text.append(f"{_short(judged['question'])}  {judged['verdict']}", style="default")
    for k in range(first, min(len(steps), first + MAX_STEPS)):
        words, weight = steps[k]
        mark = ("✗" if has_marks else "x") if weight > 0 else " "
        text.append(f"\n{mark} {k}  ", style="bold red" if weight > 0 else "dim")
        text.append(_short(words), style="red" if weight > 0 else "default")
        if weight > 0:
            text.append(f"  wrong {weight:.2f}", style="bold red")
    if left := len(steps) - first - MAX_STEPS:
        text.append(f"\n  … {left} more" if left > 0 else "", style="dim")
    return text


def _short(text: str) -> str:
    one_line = visible(text.strip())
    return one_line if len(one_line) <= WIDEST else one_line[: WIDEST - 1] + "…"


def sparkline(values: Sequence[float]) -> str:
    """One block character per value, 0 lowest and 1 highest."""
    return "".join(BARS[min(len(BARS) - 1, max(0, int(v * len(BARS))))] if v == v else " " for v in values)
