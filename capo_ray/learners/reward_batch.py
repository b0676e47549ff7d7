"""Judged groups as the batch of a reward model: responses dealt over ranks, and what all ranks know of each.

Axis letters: n responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capo_ray.arrays import Runs
from capo_ray.packing import build_batch
from capo_ray.types import Batch, Group, Sample, Trajectory, TrajectoryKey


@dataclass(frozen=True, slots=True)
class Label:
    """What a response of `num_steps` steps turned out to be; siblings have the same `group`."""

    key: TrajectoryKey
    group: int
    outcome: int
    num_steps: int


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
    """The responses in cells for all ranks; its loss weights are not read."""
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
