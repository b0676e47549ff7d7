"""The page of all figures, from the register: `python -m scripts.pages.metrics > docs/metrics.md`."""

from __future__ import annotations

from capo_ray.metrics.register import METRICS, ROOMS
from capo_ray.metrics.units import UNITS

HEAD = """# Metrics

<!-- Made from capo_ray/metrics/register.py by `make docs`; a test holds the two equal. -->

A row of `metrics.jsonl` is `{"update", "unix_s", "room/quantity_unit": number or null, ...}`; null is a number that is
not finite. A figure that an update does not have (no critic, no evaluation) is absent. The last word of a name is its
unit:
"""
OVER = {"sum": "the sum", "mean": "the mean", "max": "the largest", "min": "the smallest", "": ""}


def build_page() -> str:
    """The whole of docs/metrics.md."""
    lines = [HEAD, "| last word | it is |", "|---|---|"]
    lines += [f"| {f'`{word}`' if word else 'a noun'} | {meaning} |" for word, meaning in UNITS.items()]
    for room, title in ROOMS.items():
        rows = [metric for metric in METRICS if metric.room == room]
        lines += ["", f"## {room}", "", f"{title}.", ""]
        merged = any(metric.merge for metric in rows)
        lines += (
            ["| name | over workers | meaning |", "|---|---|---|"] if merged else ["| name | meaning |", "|---|---|"]
        )
        over = "| {} ".format if merged else lambda _: ""
        lines += [f"| `{metric.name}` {over(OVER[metric.merge])}| {_cell(metric.meaning)} |" for metric in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(build_page(), end="")
