"""What a person who watches a run is told of an update: a few of its figures, and one judged response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from capo_ray.flow.group import CreditedGroup
from capo_ray.protocols import step_texts

TOLD = {
    "reward": "rollout/reward_mean",
    "agreement": "critic/agreement_frac",
    "precision": "critic/voted_precision_frac",
    "flagged": "credit/flagged_frac",
}


def shown(groups: Sequence[CreditedGroup], figures: Mapping[str, float]) -> dict[str, Any]:
    """Figures for `Progress.update`, those that there are; `idle` is the learner's share of waiting for its batch."""
    told: dict[str, Any] = {name: figures.get(figure) for name, figure in TOLD.items()}
    waited = figures["time/wait_for_batch_s"]
    whole = waited + figures["time/update_s"] + figures["time/publish_s"]
    return told | {"idle": waited / whole if whole else None, "judged": last_judged(groups)}


def last_judged(groups: Sequence[CreditedGroup]) -> dict[str, Any] | None:
    """A response of the newest judged group, the one with most blame: question, verdict, steps with their weights."""
    for one in reversed(groups):
        judged = [i for i, member in enumerate(one.group.members) if member.evidence.critiques]
        if not judged:
            continue
        most = max(judged, key=lambda i: sum(one.credit.step_weights[i]))
        member = one.group.members[most]
        response = member.trajectory.response
        texts = step_texts(response.text, response.char_ends, member.steps)
        return {
            "question": one.group.problem.prompt,
            "verdict": {1: "right", 0: "wrong", None: "invalid"}[member.verdict.reward],
            "steps": list(zip(texts, one.credit.step_weights[most], strict=True)),
        }
    return None
