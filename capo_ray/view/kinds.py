"""What kinds of steps critics hold to be wrong most, of the newest groups that were kept."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from capo_ray.runs.reading import Run

MAX_GROUPS, MAX_CHARACTERS = 400, 20_000_000
"""Of transcripts, for one look: a second at most."""
FLAGGED = 0.5
MAX_KINDS = 15
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def kind_of(step: str) -> str:
    """Steps of one kind differ in their numbers alone, or after their eighth word."""
    return " ".join(_NUMBER.sub("#", step).split()[:8])[:80]


def flagged_kinds(run: Run) -> list[dict[str, Any]]:
    """Of each kind how many steps were judged and how many of them held to be wrong, most first, with an example."""
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"judged": 0, "wrong": 0})
    left = MAX_CHARACTERS
    for head in reversed(run.heads()[-MAX_GROUPS:]):
        if left <= 0:
            break
        line = run.group(head.index)
        for sample, response in enumerate(_list(line.get("responses"))):
            votes, tokens = _list(response.get("votes")), _list(response.get("tokens"))
            left -= sum(len(str(vote)) for vote in votes) + 50 * len(tokens)
            for step, (text, weight) in enumerate(_judged_steps(response)):
                one = found[kind_of(text)]
                one["judged"] += 1
                if weight >= FLAGGED:
                    one["wrong"] += 1
                    one.setdefault("example", {"group": head.index, "sample": sample, "step": step})
    told = [{"kind": kind, **one} for kind, one in found.items() if one["wrong"]]
    return sorted(told, key=lambda one: -one["wrong"])[:MAX_KINDS]


def _judged_steps(response: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Each step's text and how wrong it is held to be; () of a response that nobody judged, or of another layout."""
    if not response.get("flagged"):
        return []
    try:
        tokens, weights = response["tokens"], response["credit"]["step_weights"]
        spans = zip(response["steps"], weights, strict=True)
        return [("".join(tokens[start:end]), float(weight or 0.0)) for (start, end), weight in spans]
    except (KeyError, TypeError, ValueError):
        return []


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
