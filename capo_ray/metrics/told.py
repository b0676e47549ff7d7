"""A transcript's line for people, for the trackers that they look at: a text, and rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from capo_ray.steps.visible import visible

WORDS = {1: "right", 0: "wrong", None: "invalid"}
COLUMNS = ("update", "problem", "question", "response", "verdict", "steps", "held wrong", "critiques", "advantage")


def to_rows(line: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """A row of `COLUMNS` for each response: texts as they are harmless to show, its mean advantage in the end."""
    for one in line["responses"]:
        credit, advantages = one["credit"], one["credit"]["advantages"]
        texts = (visible(str(line["id"])), visible(str(line["question"])), visible(one["text"]))
        flagged = sum(bool(weight) for weight in credit["step_weights"])
        counts = (len(one["steps"]), flagged, credit["valid_critiques"])
        mean = sum(a or 0.0 for a in advantages) / max(1, len(advantages))
        yield line["update"], *texts, WORDS[one["reward"]], *counts, mean


def to_markdown(line: Mapping[str, Any]) -> str:
    """Question, a table of the responses, and each of them step by step with the weights of the vote and advantages.

    What a model wrote stands indented, which Markdown shows as it is.
    """
    head = [("response", *COLUMNS[4:]), ("---",) * 6]
    rows = [(i + 1, *row[4:-1], f"{row[-1]:+.3f}") for i, row in enumerate(to_rows(line))]
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in (*head, *rows))
    parts = [f"**question, of update {line['update']}**", _indented([str(line["question"])]), table]
    for one in line["responses"]:
        weights, advantages = one["credit"]["step_weights"], one["credit"]["advantages"]
        steps = []
        for k, (start, end) in enumerate(one["steps"]):
            weight = weights[k] if k < len(weights) else 0.0
            mark = f"wrong {weight:.2f}" if weight else " " * 10
            steps.append(f"{mark}  {advantages[start]:+.2f}  {''.join(one['tokens'][start:end])}")
        parts += [f"**{WORDS[one['reward']]}** ({one['credit']['valid_critiques']} critiques)", _indented(steps)]
    return "\n\n".join(parts)


def _indented(texts: list[str]) -> str:
    return "\n".join(f"    {visible(text.rstrip())}" for text in texts)
