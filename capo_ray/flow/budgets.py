"""Budgets of what must not go on for ever: groups without credit, failed, without a critic's word; a batch's time."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from capo_ray.config import TrainConfig
from capo_ray.evidence import deadline_s
from capo_ray.evidence.critiques import quorum
from capo_ray.flow.group import CreditedGroup
from capo_ray.protocols import RunFailed

RECENT_GROUPS = 50
MIN_JUDGED = 20


class Budgets:
    """Counts streaks; `exhausted` is set when one is over, and then says why."""

    def __init__(self, config: TrainConfig) -> None:
        self.exhausted = asyncio.Event()
        self.solved: str | None = None
        self.num_creditless = 0
        self._max_creditless, self._max_failures = config.run.max_creditless_groups, config.run.max_failures
        self._creditless_streak, self._right_in_streak, self._rewards_in_streak = 0, 0, 0
        self._failure_streak, self._unjudged_in_streak, self._unjudged_for = 0, 0, ""
        self._judging = f"verifier.kind={config.verifier.kind} and the reference answers with `capo-ray verify`"
        if config.environment.tells_outcome:
            self._judging = f"environment.kind={config.environment.kind}"
        self._quorum, self._max_outcome_only = quorum(config), config.critic.max_outcome_only_frac
        self._cure = "check the critic, critic.rubric and critic.max_tokens with `capo-ray critique`"
        if config.critic.backend == "calculator":
            self._cure = (
                "the calculator judges only steps in which it finds arithmetic: let it, with "
                "critic.max_outcome_only_frac=1, or choose another critic"
            )
        self._outcome_only: deque[bool] = deque(maxlen=RECENT_GROUPS)
        self._failure: str | None = None

    def credit(self, group: CreditedGroup) -> None:
        """A group came to its credit; at the budget of those without any the run ends: solved if all were right."""
        self._failure_streak = 0
        if group.credit.has_signal:
            self._creditless_streak = self._right_in_streak = self._rewards_in_streak = self._unjudged_in_streak = 0
            return
        self.num_creditless += 1
        self._creditless_streak += 1
        self._right_in_streak += sum(group.rewards)
        self._rewards_in_streak += len(group.rewards)
        for member in group.group.members:
            if not member.verdict.valid:
                self._unjudged_in_streak, self._unjudged_for = self._unjudged_in_streak + 1, member.verdict.reason
        if self._creditless_streak < self._max_creditless or self.exhausted.is_set():
            return
        right_frac = self._right_in_streak / max(1, self._rewards_in_streak)
        if self._unjudged_in_streak > self._rewards_in_streak:  # of those alone, all may well be right
            self._failure = (
                f"expected verdicts on most responses of {self._creditless_streak} groups in a row without credit, got "
                f"none on {self._unjudged_in_streak} of {self._unjudged_in_streak + self._rewards_in_streak}, the last "
                f"for {self._unjudged_for!a}: check {self._judging}"
            )
        elif self._rewards_in_streak and right_frac == 1.0:
            self.solved = f"{self._creditless_streak} groups in a row had only right answers: nothing left to learn"
        else:
            self._failure = (
                f"expected credit in at least one of {self._max_creditless} groups in a row, got none "
                f"({right_frac:.1%} of their answers were right): the policy is too weak for these problems, or the "
                f"verifier does not read its answers; look at transcripts.jsonl, try easier problems, a larger "
                f"rollout.group_size, or a supervised start (capo-ray sft)"
            )
        self.exhausted.set()

    def failed(self, reason: str) -> None:
        """A group failed."""
        self._failure_streak += 1
        if self._failure_streak >= self._max_failures and not self.exhausted.is_set():
            self._failure = f"{self._failure_streak} groups in a row failed, the last with {reason}"
            self.exhausted.set()

    def judged(self, group: CreditedGroup) -> None:
        """A group was critiqued; too many of the recent ones without quorum end the run: they teach outcomes only.

        A group of which no critic was asked (`critic.skip`) is not one of them.
        """
        if not any(member.evidence.critiques for member in group.group.members):
            return
        valid = [n for n, included in zip(group.credit.valid_critiques, group.credit.included, strict=True) if included]
        self._outcome_only.append(any(n < self._quorum for n in valid))
        share = self.outcome_only_frac
        if len(self._outcome_only) < MIN_JUDGED or share <= self._max_outcome_only or self.exhausted.is_set():
            return
        reasons = Counter(c.reason for m in group.group.members for c in m.evidence.critiques if not c.valid)
        self._failure = (
            f"expected at least {self._quorum} readable critiques of each response, got fewer in {share:.0%} of the "
            f"last {len(self._outcome_only)} groups (critic.max_outcome_only_frac={self._max_outcome_only:g}); most "
            f"common cause: {next(iter(dict(reasons.most_common(1))), 'no answer')}; {self._cure}"
        )
        self.exhausted.set()

    @property
    def outcome_only_frac(self) -> float:
        """The share of recent judged groups with a response below the quorum; 0.0 before the first."""
        return sum(self._outcome_only) / len(self._outcome_only) if self._outcome_only else 0.0

    def figures(self) -> dict[str, float]:
        """What a run watches, names as in metrics; of critics nothing before the first judged group."""
        figures = {"stream/creditless_groups_total": float(self.num_creditless)}
        return figures | ({"critic/outcome_only_frac": self.outcome_only_frac} if self._outcome_only else {})

    def raise_if_failed(self) -> None:
        """Raise `RunFailed` where a budget of failures or creditless groups is over."""
        if self._failure is not None:
            raise RunFailed(self._failure)


def batch_deadline_s(config: TrainConfig) -> float:
    """The seconds within which the groups under way are finished where every part keeps its own deadline."""
    return (
        config.environment.seconds(config.rollout.deadline_s)
        + config.critic.deadline_s
        + config.verifier.deadline_s
        + deadline_s(config)
    )
