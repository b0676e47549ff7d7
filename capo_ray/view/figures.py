"""What each page shows of a run, as plain objects for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from capo_ray.ledger.lives import read_lives
from capo_ray.runs.layout import LEDGER_FILE
from capo_ray.runs.reading import Head, Run
from capo_ray.view.actors import lanes_of
from capo_ray.view.comparing import line_of
from capo_ray.view.kinds import flagged_kinds

Point = list[float | int | None]
"""Update, value, and where there are the ends of its 95% interval."""

_INTERVALS = {"eval/accuracy_frac": ("eval/accuracy_low_frac", "eval/accuracy_high_frac")}


def run_line(run: Run, number: int) -> dict[str, Any]:
    """What the list of runs shows of one."""
    line, rows = line_of(run), run.rows()
    alarms = sorted(k for k, v in rows[-1].items() if k.endswith("_alarm") and v) if rows else []
    return {**line, "id": number, "name": line["run"], "groups": len(run.heads()), "alarms": alarms}


def series(run: Run, names: Iterable[str]) -> dict[str, list[Point]]:
    """The points of each figure; those without a slash are made from others. Held-out accuracy has its interval."""
    rows = run.rows()
    found: dict[str, list[Point]] = {}
    for name in names:
        if name in MADE:
            found[name] = MADE[name](rows)
            continue
        told = [row for row in rows if row.get(name) is not None]
        points: list[Point] = [[row["update"], row[name]] for row in told]
        if name in _INTERVALS:
            points = [[*point, *_interval(row, *_INTERVALS[name])] for point, row in zip(points, told, strict=True)]
        found[name] = points
    return found


def _interval(row: dict[str, Any], low: str, high: str) -> list[float | None]:
    return [row.get(low), row.get(high)]


def _growth(rows: Sequence[dict[str, Any]], counter: str) -> Iterator[tuple[dict[str, Any], float, float]]:
    """(row, growth, seconds) of a counter since it last changed: workers tell theirs every few seconds."""
    before: dict[str, Any] | None = None
    for row in rows:
        if row.get(counter) is None or row.get("unix_s") is None:
            continue
        if before is not None and row[counter] != before[counter]:
            grown, passed = row[counter] - before[counter], row["unix_s"] - before["unix_s"]
            if grown > 0 and passed > 0:
                yield row, grown, passed
        if before is None or row[counter] != before[counter]:
            before = row


def _tokens_rate(rows: Sequence[dict[str, Any]]) -> list[Point]:
    found = _growth(rows, "rollout/generated_tokens_total")
    return [[row["update"], grown / passed] for row, grown, passed in found]


MADE: dict[str, Callable[[Sequence[dict[str, Any]]], list[Point]]] = {
    "tokens_per_second": _tokens_rate,
}

_FILTERS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "": lambda facts: True,
    "wrong": lambda facts: _outcomes(facts) == {0},
    "right": lambda facts: _outcomes(facts) == {1},
    "mixed": lambda facts: len(_outcomes(facts)) > 1,
    "split": lambda facts: facts["split_steps"] > 0,
    "gap": lambda facts: facts["against_verifier"] > 0,
    "flagged": lambda facts: facts["flagged_steps"] > 0,
}
_SORTS: dict[str, Callable[[dict[str, Any]], float]] = {
    "update": lambda facts: -facts["update"],
    "reward": lambda facts: _mean([r for r in facts["rewards"] if r is not None]),
    "length": lambda facts: -max(facts["tokens"], default=0),
    "disagreement": lambda facts: -facts["split_steps"],
    "gap": lambda facts: -facts["against_verifier"],
}
_FACTS = {
    "update": 0,
    "group": 0,
    "problem": "",
    "rewards": [],
    "tokens": [],
    "flagged_steps": 0,
    "split_steps": 0,
    "against_verifier": 0,
}


def _outcomes(facts: dict[str, Any]) -> set[int]:
    """Which rewards its responses have, those without a verdict left out."""
    return {int(r) for r in facts["rewards"] if r is not None}


def _mean(values: Sequence[float]) -> float:
    """The mean, 0 of none."""
    return sum(values) / max(1, len(values))


class Unknown(ValueError):
    """Something was asked for that is not there; one sentence."""


def choose(
    run: Run, *, sort: str = "update", filter: str = "", find: str = "", update: int | None = None
) -> list[Head]:
    """The groups that fit, in order."""
    for what, name, known in (("sort", sort, _SORTS), ("filter", filter, _FILTERS)):
        if name not in known:
            raise Unknown(f"expected {what} to be one of {', '.join(known)}, got {name!r}")
    heads = [Head(head.index, _FACTS | head.facts) for head in run.heads()]
    if find:
        wanted = set(run.find(find))
        heads = [head for head in heads if head.index in wanted]
    fits = [h for h in heads if _FILTERS[filter](h.facts) and update in (None, h.facts["update"])]
    return sorted(fits, key=lambda head: _SORTS[sort](head.facts))


def group_list(heads: Sequence[Head], offset: int, limit: int) -> dict[str, Any]:
    """A page of a list."""
    part = heads[max(0, offset) : max(0, offset) + min(1000, max(0, limit))]
    return {"total": len(heads), "groups": [{"index": head.index, **head.facts} for head in part]}


def critic_page(run: Run) -> dict[str, Any]:
    """Facts of the critic tier, and groups to look at."""
    critic, summary = _deep(run.settings, "critic") or {}, run.summary or {}
    told = summary.get("critic") or {}
    facts = {
        "backend": critic.get("backend", ""),
        "model": critic.get("model", ""),
        "votes asked of each response": critic.get("num_votes"),
        "critiques": told.get("num_critiques", summary.get("critiques")),
        "step precision of one vote": told.get("precision"),
        "step recall of one vote": told.get("recall"),
        "step precision after the vote": told.get("voted_precision"),
        "step recall after the vote": told.get("voted_recall"),
    }
    gaps = [head for head in choose(run, sort="gap") if head.facts["against_verifier"]]
    split = [head for head in choose(run, sort="disagreement") if head.facts["split_steps"]]
    return {
        "facts": {name: value for name, value in facts.items() if value not in (None, "")},
        "lenient": [_example(h, "critics say right") for h in gaps if not h.facts["flagged_steps"]][:10],
        "strict": [_example(h, f"{h.facts['flagged_steps']} steps flagged") for h in gaps if h.facts["flagged_steps"]][
            :10
        ],
        "split": [_example(h, f"{h.facts['split_steps']} steps with split votes") for h in split[:10]],
        "kinds": flagged_kinds(run),
    }


def _example(head: Head, words: str) -> dict[str, Any]:
    facts = head.facts
    return {"index": head.index, "update": facts["update"], "problem": facts["problem"], "words": words}


def flow_page(run: Run, update: int | None) -> dict[str, Any]:
    """Lives of groups around an update, who worked for them, and the ledger's counts.

    `{"refused": sentence}` where the ledger cannot be read: the other pages do without it.
    """
    try:
        lives = read_lives(run.path / LEDGER_FILE, update)
    except ValueError as error:
        return {"refused": str(error)}
    began: dict[int | None, float] = {}
    for work in lives.works:  # in the order of their beginning
        began.setdefault(work.group, work.began_s)
    groups = [
        {
            "group": life.group,
            "problem": life.problem,
            "born": min(*life.times.values(), began.get(life.group, math.inf)),
            "end": max(life.times.values()),
            "times": life.times,
        }
        for life in lives.groups
        if life.times
    ]
    head = {"update": lives.update, "counts": lives.counts, "reasons": lives.reasons, "balanced": lives.balanced}
    return {**head, "groups": groups, "actors": lanes_of(lives)}


def _deep(tree: Any, *names: str) -> Any:
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
