"""The arms of the learning benchmark: what evidence each gathers, and by which of the project's credit rules."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from capo_ray.config.credit import CREDIT_METHODS, CreditBase
from capo_ray.types import Evidence, Group
from capo_ray.votes import step_weights
from plain_torch.reward_model import RewardModel
from plain_torch.world import Actor, Critic, shuffle_flags, truth_of, with_answer_logprobs, with_evidence, with_flags

NUM_VOTES = 4


@dataclass
class Parts:
    """What an arm may use; `critic` and `reward_model` are there for the arms that read them."""

    actor: Actor
    critic: Critic | None
    reward_model: RewardModel | None
    generator: torch.Generator
    rng: random.Random

    def votes(self, groups: Sequence[Group], count: int = NUM_VOTES, greedy: bool = False) -> list[Group]:
        """The groups with the real critic's votes."""
        assert self.critic is not None
        return self.critic.critique(groups, count, self.generator, greedy=greedy)


Gather = Callable[[Parts, Sequence[Group]], list[Group]]


@dataclass(frozen=True)
class Arm:
    """A credit rule with its config, and how its evidence comes."""

    method: str
    settings: dict[str, object]
    gather: Gather
    uses: frozenset[str] = frozenset()

    @property
    def config(self) -> CreditBase:
        return CREDIT_METHODS[self.method](method=self.method, **self.settings)


def nothing(parts: Parts, groups: Sequence[Group]) -> list[Group]:
    return list(groups)


def critiques(parts: Parts, groups: Sequence[Group]) -> list[Group]:
    return parts.votes(groups)


def one_greedy_critique(parts: Parts, groups: Sequence[Group]) -> list[Group]:
    return parts.votes(groups, 1, greedy=True)


def true_labels(parts: Parts, groups: Sequence[Group]) -> list[Group]:
    return [with_flags(g, [[wrong] for wrong in truth_of(g)]) for g in groups]


def shuffled(parts: Parts, groups: Sequence[Group]) -> list[Group]:
    return [shuffle_flags(g, parts.rng) for g in parts.votes(groups)]


def at_random(parts: Parts, groups: Sequence[Group]) -> list[Group]:
    """Each step flagged by chance, as often as the critics' majority flags the steps of this batch."""
    judged = parts.votes(groups)
    weights = [
        w
        for g in judged
        for m in g.members
        for w in step_weights(
            [c.flagged for c in m.evidence.critiques if c.flagged is not None], len(m.steps), "majority"
        )
    ]
    rate = sum(weights) / len(weights)
    return [
        with_flags(g, [[frozenset(s for s in range(len(m.steps)) if parts.rng.random() < rate)] for m in g.members])
        for g in groups
    ]


def answer_logprobs(parts: Parts, groups: Sequence[Group]) -> list[Group]:
    return [with_answer_logprobs(parts.actor, g) for g in groups]


def answer_logprobs_by_entropy(parts: Parts, groups: Sequence[Group]) -> list[Group]:
    """As `answer_logprobs`, on the segments that ACPO cuts."""
    return [with_answer_logprobs(parts.actor, g, "entropy") for g in groups]


def token_rewards(parts: Parts, groups: Sequence[Group]) -> list[Group]:
    """Of a model that has not seen these outcomes yet, as in the pipeline."""
    assert parts.reward_model is not None
    rows = parts.reward_model.judge(groups)
    parts.reward_model.train(groups)
    return [
        with_evidence(g, [Evidence(token_rewards=np.array(r)) for r in row])
        for g, row in zip(groups, rows, strict=True)
    ]


CRITIC, PHI = frozenset({"critic"}), frozenset({"phi"})
ARMS: dict[str, Arm] = {
    "grpo": Arm("grpo", {}, nothing),
    "capo_majority": Arm("capo", {"vote": "majority"}, critiques, CRITIC),
    "shuffled": Arm("capo", {"vote": "majority"}, shuffled, CRITIC),
    "random": Arm("capo", {"vote": "majority"}, at_random, CRITIC),
    "oracle": Arm("capo", {"vote": "majority"}, true_labels),
    "capo_intersection": Arm("capo", {"vote": "intersection"}, critiques, CRITIC),
    "capo_union": Arm("capo", {"vote": "union"}, critiques, CRITIC),
    "capo_average": Arm("capo", {"vote": "average"}, critiques, CRITIC),
    "capo_greedy": Arm("capo", {"vote": "greedy"}, one_greedy_critique, CRITIC),
    "acpo": Arm("acpo", {}, answer_logprobs_by_entropy),
    "mig": Arm("mig", {}, answer_logprobs),
    "prime": Arm("prime", {}, token_rewards, PHI),
}
MAIN_ARMS = tuple(ARMS)
"""In the order in which a seed runs them."""


def flawed_labels(precision: float, recall: float) -> Gather:
    """True labels with errors of a critic of this precision and recall, one vote, where a quarter of steps is wrong."""

    def gather(parts: Parts, groups: Sequence[Group]) -> list[Group]:
        false_alarm = recall * 0.25 / 0.75 * (1 - precision) / precision
        rows = []
        for group in groups:
            flags = []
            for member, wrong in zip(group.members, truth_of(group), strict=True):
                shares = [recall if s in wrong else false_alarm for s in range(len(member.steps))]
                flags.append([frozenset(s for s, share in enumerate(shares) if parts.rng.random() < share)])
            rows.append(with_flags(group, flags))
        return rows

    return gather


# Ablations: one thing changed from capo_majority (real critic) or from oracle (true labels); and further methods.
ARMS |= {
    "capo_process_0.3": Arm("capo", {"w_process": 0.3}, critiques, CRITIC),
    "capo_process_2": Arm("capo", {"w_process": 2.0}, critiques, CRITIC),
    "capo_separate": Arm("capo", {"normalisation": "separate"}, critiques, CRITIC),
    "capo_leave_one_out": Arm("capo", {"normalisation": "leave_one_out"}, critiques, CRITIC),
    "capo_keep_sign": Arm("capo", {"keep_outcome_sign": True}, critiques, CRITIC),
    "istar": Arm("istar", {}, token_rewards, PHI),
    "qrm": Arm("qrm", {}, token_rewards, PHI),
    "pure": Arm("pure", {}, critiques, CRITIC),
    "grpo_genorm": Arm("grpo_genorm", {}, critiques, CRITIC),
    "oracle_half_recall": Arm("capo", {}, flawed_labels(1.0, 0.5)),
    "oracle_half_precision": Arm("capo", {}, flawed_labels(0.5, 1.0)),
}
