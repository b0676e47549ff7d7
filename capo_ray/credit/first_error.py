"""Where the critics see the first wrong step of a wrong response: shared by Cliff and VPPO.

A critique that is invalid, or not trusted (`credit.trust`), abstains. Our choices, where the papers have one teacher
and no vote: a wrong response in which the vote flags nothing, or below the quorum, counts from its first token, so it
is credited as in GRPO.
"""

from __future__ import annotations

from capo_ray.config.credit import FirstErrorBase
from capo_ray.types import Judged
from capo_ray.votes import step_weights


def weigh_steps(member: Judged, config: FirstErrorBase) -> tuple[float, ...]:
    """[K]: 1 for the steps that the vote of the trusted critiques calls wrong, 0 for the others."""
    reward = member.verdict.reward
    flagged = [
        critique.flagged
        for critique in member.evidence.critiques
        if critique.flagged is not None and (config.trust == "always" or critique.overall == bool(reward))
    ]
    if len(flagged) < config.quorum:
        return (0.0,) * len(member.steps)
    return step_weights(flagged, len(member.steps), config.vote)


def good_prefix(member: Judged, weights: tuple[float, ...]) -> int:
    """Tokens before the first wrong step of a wrong response; 0 where none is flagged."""
    starts = [start for (start, _), weight in zip(member.steps, weights, strict=True) if weight > 0]
    return starts[0] if starts else 0
