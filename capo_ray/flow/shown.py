"""What a person who watches a run is told of an update: its figures, one judged response, whole groups now and then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from capo_ray.config.sections import RunConfig
from capo_ray.flow.group import CreditedGroup
from capo_ray.protocols import step_texts

TOLD = {
    "reward": "rollout/reward_mean",
    "agreement": "critic/agreement_frac",
    "precision": "critic/voted_precision_frac",
    "flagged": "credit/flagged_frac",
}
IDLE = {
    "engines": "rollout/idle_frac",
    "verifiers": "verifier/idle_frac",
    "critics": "critic/idle_frac",
    "learner": "learner/idle_frac",
}


def kept(groups: Sequence[CreditedGroup], run: RunConfig, update: int) -> Sequence[CreditedGroup]:
    """Those of an update's groups that go into the transcripts."""
    told = update % run.transcripts_every == 0 or update in (1, run.num_updates)
    return groups[: run.transcript_groups or None] if told else ()


def shown(groups: Sequence[CreditedGroup], figures: Mapping[str, float]) -> dict[str, Any]:
    """Figures for `Progress.update`, those that there are; `idle` has the share of each tier that tells."""
    told: dict[str, Any] = {name: figures.get(figure) for name, figure in TOLD.items()}
    idle = {words: figures[figure] for words, figure in IDLE.items() if figure in figures}
    return told | {"idle": idle, "judged": last_judged(groups)}


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
