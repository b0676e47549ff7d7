"""The figures of an update and of the critic, from groups: plain counting, no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from capo_ray.credit import audit
from capo_ray.critics.quality import vote_agreement
from capo_ray.flow.group import CreditedGroup
from capo_ray.flow.parts import StepTruth
from capo_ray.protocols import step_texts

FLAGGED = 0.5
"""A step weight from which on a step counts as flagged by the vote."""


@dataclass
class CriticScore:
    """Counts of the critic's work over a run; precision and recall where the truth of each step is known."""

    num_responses: int = 0
    num_skipped: int = 0
    num_critiques: int = 0
    num_valid: int = 0
    num_cached: int = 0
    output_tokens: int = 0
    single_hits: int = 0
    single_false: int = 0
    single_missed: int = 0
    voted_hits: int = 0
    voted_false: int = 0
    voted_missed: int = 0
    num_groups: int = 0
    num_saved: int = 0
    """Groups with credit although all their answers are alike: steps alone tell their responses apart."""
    num_steps: int = 0
    num_flagged: int = 0
    """Of the steps of judged responses, those that the vote holds to be wrong."""

    def __post_init__(self) -> None:
        self._told: CriticScore | None = None

    def count(self, group: CreditedGroup, truth: StepTruth | None) -> None:
        """Add the critiques of one group."""
        if any(member.evidence.critiques for member in group.group.members):
            alike = len({m.verdict.reward for m in group.group.members if m.verdict.valid}) < 2
            self.num_groups += 1
            self.num_saved += alike and group.credit.has_signal
        for member, weights in zip(group.group.members, group.credit.step_weights, strict=True):
            critiques = member.evidence.critiques
            self.num_responses += member.verdict.valid
            if not critiques:
                self.num_skipped += member.verdict.valid
                continue
            self.num_steps += len(member.steps)
            self.num_flagged += sum(weight >= FLAGGED for weight in weights)
            self.num_critiques += len(critiques)
            self.num_valid += sum(c.valid for c in critiques)
            self.num_cached += sum(c.provenance.cached for c in critiques)
            self.output_tokens += sum(c.provenance.output_tokens for c in critiques)
            if truth is None:
                continue
            response = member.trajectory.response
            wrong = truth(group.group.problem, step_texts(response.text, response.char_ends, member.steps))
            voted = {k for k, weight in enumerate(weights) if weight >= FLAGGED}
            self.voted_hits += len(voted & wrong)
            self.voted_false += len(voted - wrong)
            self.voted_missed += len(wrong - voted)
            for critique in critiques:
                if critique.flagged is not None:
                    self.single_hits += len(critique.flagged & wrong)
                    self.single_false += len(critique.flagged - wrong)
                    self.single_missed += len(wrong - critique.flagged)

    def figures(self) -> dict[str, float]:
        """The share of responses that no critic was asked about, over the run; and since the last call, precision and
        recall where the truth is known. Nothing where no critic ever was asked."""
        if not self.num_critiques:
            return {}
        figures = {"critic/skipped_frac": self.num_skipped / self.num_responses}
        before, self._told = self._told, replace(self)
        before = before or CriticScore()
        single, voted = self.single_hits - before.single_hits, self.voted_hits - before.voted_hits
        ratios = {
            "critic/precision_frac": _ratio(single, self.single_false - before.single_false),
            "critic/recall_frac": _ratio(single, self.single_missed - before.single_missed),
            "critic/voted_precision_frac": _ratio(voted, self.voted_false - before.voted_false),
            "critic/voted_recall_frac": _ratio(voted, self.voted_missed - before.voted_missed),
        }
        return figures | {name: ratio for name, ratio in ratios.items() if ratio is not None}

    def summary(self) -> dict[str, float | int | None]:
        """The counts, and step precision and recall of single critiques and of the vote (None: truth unknown)."""
        ratios = {
            "precision": _ratio(self.single_hits, self.single_false),
            "recall": _ratio(self.single_hits, self.single_missed),
            "voted_precision": _ratio(self.voted_hits, self.voted_false),
            "voted_recall": _ratio(self.voted_hits, self.voted_missed),
        }
        return {**asdict(self), **ratios}


def _ratio(hits: int, others: int) -> float | None:
    return hits / (hits + others) if hits + others else None


def agreement(group: CreditedGroup) -> list[float]:
    """For each response with two or more valid critiques, the mean pairwise share of steps on which they agree."""
    shares = [
        vote_agreement([c.flagged for c in member.evidence.critiques if c.flagged is not None], len(member.steps))
        for member in group.group.members
    ]
    return [share for share in shares if not math.isnan(share)]


def update_figures(groups: Sequence[CreditedGroup], loss: dict[str, float]) -> dict[str, float]:
    """The figures of one update that trained `groups`, beside those of age; names are `room/quantity_unit`."""
    members = [m for g in groups for m in g.group.members]
    rewards = [r for g in groups for r in g.rewards]
    figures = {
        "rollout/reward_mean": mean(rewards),
        "rollout/response_tokens_mean": mean([m.num_tokens for m in members]),
        "rollout/steps_mean": mean([len(m.steps) for m in members]),
        "rollout/truncated_frac": mean([m.trajectory.response.finish == "length" for m in members]),
        "verifier/invalid_frac": mean([not m.verdict.valid for m in members]),
    }
    if turns := [turn for m in members for turn in m.trajectory.turns]:
        figures["rollout/turns_mean"] = len(turns) / len(members)
        figures["rollout/illegal_turns_frac"] = mean([not turn.legal for turn in turns])
    if value_tokens := sum(m.evidence.num_value_tokens for m in members):
        figures["rollout/value_tokens_mean"] = value_tokens / len(members)
    for stage in sorted({stage for g in groups for stage in g.stage_s}):
        figures[f"time/{stage}_s"] = mean([g.stage_s[stage] for g in groups if stage in g.stage_s])
    audits = [audit(g.group, g.credit) for g in groups]
    for name in sorted({name for a in audits for name in a}):
        figures[name] = mean([a[name] for a in audits if name in a])
    return figures | loss


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return sum(values) / len(values) if values else float("nan")
