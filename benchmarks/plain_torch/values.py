"""Monte-Carlo values of step prefixes, as in VinePPO (arXiv 2410.01679): the mean outcome of 9 rollouts per prefix."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from capo_ray.problems.chains import shown_answer
from capo_ray.types import Group, Judged, Trajectory
from plain_torch.sampling import sample
from plain_torch.world import Actor

ROLLOUTS = 9
PREFIXES_AT_ONCE = 64
ROOM = 8
"""Tokens beyond what is left of the response."""


@torch.no_grad()
def step_values(
    actor: Actor, groups: Sequence[Group], generator: torch.Generator, rollouts: int = ROLLOUTS
) -> list[list[list[float]]]:
    """[groups][G][K+1]: the value of each prefix; equal prefixes share theirs, and the last is the outcome."""
    prefixes: dict[tuple[int, ...], tuple[str, str, int]] = {}
    for group in groups:
        for member in group.members:
            path = member.trajectory
            for end in starts(member):
                shown = actor.tokenizer.decode(path.response.token_ids[:end].tolist())
                room = member.num_tokens - end + ROOM
                prefixes.setdefault(_prefix(path, end), (shown, group.problem.answer, room))
    ordered = sorted(prefixes, key=lambda prefix: prefixes[prefix][2])
    values: dict[tuple[int, ...], float] = {}
    for at in range(0, len(ordered), PREFIXES_AT_ONCE):
        part = ordered[at : at + PREFIXES_AT_ONCE]
        room = max(prefixes[prefix][2] for prefix in part)
        streams = sample(actor.model, part, rollouts, max_tokens=room, generator=generator)
        for prefix, row in zip(part, streams, strict=True):
            shown, answer, _ = prefixes[prefix]
            right = [shown_answer(shown + actor.tokenizer.decode(s.ids)) == answer for s in row]
            values[prefix] = sum(right) / rollouts
    return [[values_of(member, values) for member in group.members] for group in groups]


def starts(member: Judged) -> tuple[int, ...]:
    """Where each step of a response begins."""
    return tuple(start for start, _ in member.steps)


def _prefix(path: Trajectory, end: int) -> tuple[int, ...]:
    """The prompt and the first `end` tokens of the response."""
    return tuple(path.token_ids[: len(path.prompt_ids) + end].tolist())


def values_of(member: Judged, values: dict[tuple[int, ...], float]) -> list[float]:
    """[K+1] of one response."""
    path = member.trajectory
    found = [values[_prefix(path, start)] for start in starts(member)]
    return [*found, float(member.verdict.reward or 0)]
