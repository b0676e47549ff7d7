"""Runs side by side: what they were told differently, and where each stood after equal updates, tokens and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from capo_ray.runs.reading import Run

ACCURACY = "eval/accuracy_frac"
TOKENS, CRITIC_TOKENS = "rollout/generated_tokens_total", "critic/output_tokens_total"
_ASIDE = ("run.name", "run.dir", "resume")
"""Keys in which any two runs differ."""


def line_of(run: Run) -> dict[str, Any]:
    """One run in a line: what it is, how it ended, what it reached."""
    rows, summary = run.rows(), run.summary or {}
    accuracy = [row[ACCURACY] for row in rows if row.get(ACCURACY) is not None]
    spent = _spent(run, rows)
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.status,
        "method": run.section("credit").get("method", ""),
        "model": run.section("model").get("path", ""),
        "seed": run.section("run").get("seed"),
        "updates": rows[-1]["update"] if rows else 0,
        "first_accuracy": accuracy[0] if accuracy else None,
        "last_accuracy": accuracy[-1] if accuracy else None,
        "seconds": summary.get("wall_s", spent[-1]["seconds"] if spent else None),
        "tokens": spent[-1][TOKENS] if spent else None,
        "critic_tokens": spent[-1][CRITIC_TOKENS] if spent else None,
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
        pairs = zip(rows, _spent(run, rows), strict=True)
        tables.append(
            {
                row["update"]: {"accuracy": row[ACCURACY], "seconds": spent["seconds"], "tokens": spent[TOKENS]}
                for row, spent in pairs
                if row.get(ACCURACY) is not None
            }
        )
    updates = sorted({update for table in tables for update in table})
    return [{"update": update, "runs": [table.get(update) for table in tables]} for update in updates]


def _spent(run: Run, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """Up to each row, over all sessions: seconds since the first one, those between sessions left out, and tokens.

    Workers count from their own start, so that a resumed run's counters begin again; what one that was replaced had
    counted since the row before is lost. None where nothing tells.
    """
    sessions, found = run.sessions, list[dict[str, float | None]]()
    whole: dict[str, float | None] = {"seconds": None, TOKENS: None, CRITIC_TOKENS: None}
    before: dict[str, float] = {}
    last = 0
    for row in rows:
        now = max((i for i, (start, _) in enumerate(sessions) if start < row["update"]), default=0)
        if now > last:
            last, before = now, {"unix_s": sessions[now][1]}
        if (at := row.get("unix_s")) is not None:
            whole["seconds"] = round((whole["seconds"] or 0.0) + max(0.0, at - before.get("unix_s", at)), 3)
            before["unix_s"] = at
        for name in (TOKENS, CRITIC_TOKENS):
            if (count := row.get(name)) is not None:
                whole[name] = (whole[name] or 0.0) + max(0.0, count - before.get(name, 0.0))
                before[name] = count
        found.append(dict(whole))
    return found
