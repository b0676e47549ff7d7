"""A group as its policies wrote it: without the tokens that were read between turns.

A rule of credit, and the audit, see T = A: no mean, length or spread can hold a token that the policy did not sample.
"""

from __future__ import annotations

from dataclasses import replace

from capo_ray.types import Group, Judged


def sampled_only(group: Group) -> Group:
    """The group with responses and steps of sampled tokens alone, itself where each has one turn."""
    if not any(member.trajectory.response.acted for member in group.members):
        return group
    return replace(group, members=tuple(map(_sampled_only, group.members)))


def _sampled_only(member: Judged) -> Judged:
    response, steps = member.trajectory.response.sampled_only(member.steps)
    return replace(member, trajectory=replace(member.trajectory, response=response), steps=steps)
