"""GiGPO: what episodes earned, and turns from the same state, each against its own group (arXiv 2505.10978).

    r_t    = w_reward (the turn's own reward) - illegal_penalty [the turn was no move], and the outcome at the last turn
    A^E_i  = (sum of r of episode i - mean) / F                              over the episodes of the group (eq. 3)
    R_t    = sum over k >= t of gamma^(k-t) r_k                                                            (eq. 6)
    A^S_t  = (R_t - mean) / F        over all turns of the group that were taken in the state of turn t    (eq. 7)
    A      = A^E_i + w_step A^S_t                                                                          (eq. 8)

F is the deviation, or 1 (`normalisation`). A state that was met once, and an unknown one (an empty key), give A^S = 0.
Population deviation is ours, as everywhere here.
"""

from __future__ import annotations

from collections import defaultdict

from capo_ray.config.credit import GigpoConfig
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import centre_scalars, standardise_scalars
from capo_ray.types import Group, GroupCredit, Judged


def gigpo(group: Group, config: GigpoConfig, progress: float = 0.0) -> GroupCredit:
    """The credit of a group whose valid members have `turns` [K], and whose steps are these turns."""
    scale = standardise_scalars if config.normalisation == "std" else centre_scalars
    weights, outcomes = r.response_weights(group), r.outcome_rewards(group)
    earned = [
        turn_rewards(member, outcome, config) if w else [0.0] * len(member.steps)
        for member, outcome, w in zip(group.members, outcomes, weights, strict=True)
    ]
    episodes = scale([sum(row) for row in earned], weights)
    steps = step_advantages(group, [to_go(row, config.gamma) for row in earned], weights, scale)
    advantages = [
        r.spread_over_tokens(member.steps, [episode + config.w_step * x if w else 0.0 for x in row])
        for member, episode, row, w in zip(group.members, episodes, steps, weights, strict=True)
    ]
    rewards = [r.spread_over_tokens(member.steps, row) for member, row in zip(group.members, earned, strict=True)]
    return r.to_group_credit(group, advantages, rewards)


def turns_of(member: Judged) -> list[tuple[str, float, bool]]:
    """[K]: state, reward and legality of each turn; raises `EvidenceError` unless there is one for each step."""
    turns = member.evidence.more.get("turns", ())
    if len(turns) != len(member.steps):
        raise r.EvidenceError(
            f"credit=gigpo reads turns, one for each step (steps=turn): expected {len(member.steps)}, got {len(turns)}"
        )
    return [(str(state), float(reward), bool(legal)) for state, reward, legal in turns]


def turn_rewards(member: Judged, outcome: float, config: GigpoConfig) -> list[float]:
    """[K]: r_t."""
    turns = turns_of(member)
    rewards = [config.w_reward * reward - config.illegal_penalty * (not legal) for _, reward, legal in turns]
    return [*rewards[:-1], rewards[-1] + outcome] if rewards else []


def to_go(rewards: list[float], gamma: float) -> list[float]:
    """[K]: the discounted sums from each turn on."""
    total, sums = 0.0, []
    for reward in reversed(rewards):
        total = reward + gamma * total
        sums.append(total)
    return sums[::-1]


def step_advantages(group: Group, returns: list[list[float]], weights: list[float], scale: object) -> list[list[float]]:
    """[G][K]: each turn's return against the others from its state."""
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, (member, w) in enumerate(zip(group.members, weights, strict=True)):
        for k, (state, _, _) in enumerate(turns_of(member) if w else ()):
            if state:
                places[state].append((i, k))
    found = [[0.0] * len(row) for row in returns]
    for same in places.values():
        xs = [returns[i][k] for i, k in same]
        for (i, k), x in zip(same, scale(xs, [1.0] * len(xs)), strict=True):  # type: ignore[operator]
            found[i][k] = x
    return found
