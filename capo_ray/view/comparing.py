"""Runs side by side: what they were told differently, and where each stood after equal updates, tokens and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from capo_ray.runs.reading import Run

ACCURACY = "eval/accuracy_frac"
_ASIDE = ("run.name", "run.dir", "resume")
"""Keys in which any two runs differ."""


def line_of(run: Run) -> dict[str, Any]:
    """One run in a line: what it is, how it ended, what it reached."""
    rows, summary, settings = run.rows(), run.summary or {}, run.settings
    accuracy = [row[ACCURACY] for row in rows if row.get(ACCURACY) is not None]
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.status,
        "method": (settings.get("credit") or {}).get("method", ""),
        "model": (settings.get("model") or {}).get("path", ""),
        "seed": (settings.get("run") or {}).get("seed"),
        "updates": rows[-1]["update"] if rows else 0,
        "first_accuracy": accuracy[0] if accuracy else None,
        "last_accuracy": accuracy[-1] if accuracy else None,
        "seconds": summary.get("wall_s", _seconds(rows)),
        "tokens": _last(rows, "rollout/generated_tokens_total"),
        "critic_tokens": _last(rows, "critic/output_tokens_total"),
    }


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """`keys`: those that differ, a value per run; `curve`: held-out accuracy by update; `runs`: a line each."""
    from capo_ray.config.base import flat_keys  # the page of one run does without all those sections: they take 0.3 s

    flats = [flat_keys(run.settings) for run in runs]
    names = sorted({name for flat in flats for name in flat} - set(_ASIDE))
    differ = {n: [flat.get(n) for flat in flats] for n in names if any(f.get(n) != flats[0].get(n) for f in flats)}
    return {"runs": [line_of(run) for run in runs], "keys": differ, "curve": _curve(runs)}


def _curve(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A point per update at which any of them was evaluated: accuracy, seconds since its first row, tokens so far."""
    tables = []
    for run in runs:
        rows = run.rows()
        began = rows[0].get("unix_s") if rows else None
        tables.append({row["update"]: _point(row, began) for row in rows if row.get(ACCURACY) is not None})
    updates = sorted({update for table in tables for update in table})
    return [{"update": update, "runs": [table.get(update) for table in tables]} for update in updates]


def _point(row: Mapping[str, Any], began: float | None) -> dict[str, Any]:
    at = row.get("unix_s")
    seconds = round(at - began, 1) if at is not None and began is not None else None
    return {"accuracy": row[ACCURACY], "seconds": seconds, "tokens": row.get("rollout/generated_tokens_total")}


def _seconds(rows: Sequence[Mapping[str, Any]]) -> float | None:
    times = [row["unix_s"] for row in rows if row.get("unix_s") is not None]
    return round(times[-1] - times[0], 1) if times else None


def _last(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)
