"""Judged groups as the batch of a reward model: responses dealt over ranks, and what all ranks know of each.

Axis letters: n responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from capo_ray.arrays import Runs
from capo_ray.config.credit import EvidenceScore, TokenRewards
from capo_ray.learners.reward_objectives import OBJECTIVES
from capo_ray.packing import build_batch
from capo_ray.types import Batch, Group, Judged, Sample, Trajectory, TrajectoryKey


@dataclass(frozen=True, slots=True)
class Label:
    """What a response of `num_steps` steps turned out to be; siblings have the same `group`."""

    key: TrajectoryKey
    group: int
    outcome: int
    num_steps: int


def consistent(groups: Sequence[Group]) -> list[Group]:
    """The groups with no more of them than the first steps of responses whose outcome and evidence agree (EAPO).

    They do where a right response's `evidence_score` is above the mean of the group's valid ones, or a wrong one's
    below it (after 2601.10306, of which only the idea could be read; the rule is ours).
    """
    return [replace(group, members=tuple(map(_first_step, _agreeing(group)))) for group in groups]


def _agreeing(group: Group) -> list[Judged]:
    scored = [(m, float(m.evidence.more[EvidenceScore.name])) for m in group.members if m.verdict.valid]
    mean = fmean(score for _, score in scored) if scored else 0.0
    return [m for m, score in scored if m.steps and (score > mean if m.verdict.reward else score < mean)]


def _first_step(member: Judged) -> Judged:
    end = member.steps[0][1]
    trajectory = replace(member.trajectory, response=member.trajectory.response.begins(end))
    return replace(member, trajectory=trajectory, steps=member.steps[:1])


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a reward model learns from groups: responses that it is to tell apart, and their labels."""

    trajectories: Sequence[Trajectory]
    labels: tuple[Label, ...]
    figures: dict[str, float]


def to_lesson(groups: Sequence[Group], asked: TokenRewards | None) -> Lesson:
    """Of the groups what the model that is asked for learns from, all of them unless it says so; and what to tell."""
    if asked is None or not OBJECTIVES[asked.objective].quotes_only:
        return Lesson(labelled_trajectories(groups), to_labels(groups), {})
    agreeing = consistent(groups)
    found = labelled_trajectories(agreeing)
    share = len(found) / max(1, len(labelled_trajectories(groups)))
    return Lesson(found, to_labels(agreeing), {"reward_model/consistent_frac": share})


def to_labels(groups: Sequence[Group]) -> tuple[Label, ...]:
    """[n]: one label per response with a valid verdict, groups numbered from 0."""
    return tuple(
        Label(member.trajectory.key, number, member.verdict.reward, len(member.steps))
        for number, group in enumerate(groups)
        for member in group.members
        if member.verdict.reward is not None
    )


def labelled_trajectories(groups: Sequence[Group]) -> list[Trajectory]:
    """The responses that have a label."""
    return [m.trajectory for group in groups for m in group.members if m.verdict.valid]


def has_pairs(labels: Iterable[Label]) -> bool:
    """Whether any group has both a right and a wrong response."""
    seen = {(label.group, label.outcome) for label in labels}
    return any((group, 1 - outcome) in seen for group, outcome in seen)


def to_batch(
    trajectories: Sequence[Trajectory], *, num_ranks: int, microbatch_tokens: int, packing: str = "shared"
) -> Batch:
    """The responses in cells for all ranks, none where there are none; its loss weights are not read."""
    if not trajectories:
        return Batch(grid=())
    samples = [
        Sample(
            key=trajectory.key,
            token_ids=trajectory.token_ids,
            sampler_logprobs=trajectory.response.logprobs,
            advantages=Runs.constant(0.0, trajectory.response.num_sampled),
            versions=trajectory.response.versions,
            acted=trajectory.acted,
        )
        for trajectory in trajectories
    ]
    return build_batch(
        samples,
        num_ranks=num_ranks,
        microbatch_tokens=microbatch_tokens,
        aggregation="token_mean",
        packing=packing,
    )
