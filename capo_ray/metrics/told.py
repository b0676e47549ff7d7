"""A transcript's line as a text for people, for trackers that show texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capo_ray.steps.visible import visible

WORDS = {1: "right", 0: "wrong", None: "invalid"}


def to_markdown(line: Mapping[str, Any]) -> str:
    """Question and, step by step, the responses of a group with the weights of the vote and their advantages.

    What a model wrote stands indented, which Markdown shows as it is.
    """
    parts = [f"**question, of update {line['update']}**", _indented([str(line["question"])])]
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
