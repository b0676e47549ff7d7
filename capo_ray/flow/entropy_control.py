"""How strongly the loss rewards entropy, and where: `loss.entropy_control` as weights of each sample's tokens.

    credit's shares [G][T] x coefficient x (aer: what the question's pass rate leaves) -> GroupCredit.entropy_weights
    report of the update -> entropy H -> (aer) coefficient of the next update

AER, reconstructed after 2510.10959 (its abstract and others' accounts name tau and a difficulty threshold rho; no
source with the formula could be read):
    H* = tau H_0;  lambda <- clip(lambda + eta (H* - H), 0, max);  alpha_q = lambda max(0, 1 - p_q/rho).
Our choices beyond that: H_0 and H are the learner's mean entropy over the tokens of a
batch before its first move, at the sampling temperature; lambda starts at `entropy_coef` and is at most
`entropy_max_coef`; H of a batch decides on the next one. With `lica` the learner divides by the entropy itself.

The controller is state of the run: it goes into checkpoints, and a resumed run goes on with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from capo_ray.arrays import NO_RUNS, Runs, exact_sum
from capo_ray.config.loss import LossConfig
from capo_ray.flow.group import CreditedGroup


@dataclass
class EntropyState:
    """What is remembered: the coefficient that aer steers, and the entropy it began with (None: not measured yet)."""

    coefficient: float | None = None
    initial_nats: float | None = None


class EntropyControl:
    """Weighs the tokens of each batch, and steers by what the learner reports of it."""

    def __init__(self, config: LossConfig, state: EntropyState) -> None:
        self._config, self._state = config, state
        self._shared = True
        if config.entropy_control == "aer":
            # A run that goes on from one without aer has never been steered: it starts like a new one.
            known = None if state.initial_nats is None else state.coefficient
            state.coefficient = min(config.entropy_coef if known is None else known, config.entropy_max_coef)

    @property
    def coefficient(self) -> float:
        """What the next batch's entropy is multiplied by; xi with `lica`; 0 without a control."""
        if self._config.entropy_control == "aer":
            assert self._state.coefficient is not None
            return self._state.coefficient
        return 0.0 if self._config.entropy_control == "none" else self._config.entropy_coef

    @property
    def target_nats(self) -> float | None:
        """H*, once the first update has shown H_0."""
        initial = self._state.initial_nats
        return None if initial is None else self._config.entropy_target_frac * initial

    def weigh(self, groups: Sequence[CreditedGroup]) -> list[CreditedGroup]:
        """The groups with the weight of every token's entropy in the loss; without any where the coefficient is 0."""
        rows = [group.credit.entropy_weights for group in groups]
        self._shared = any(not shares or any(row.any() for row in shares) for shares in rows)
        return [self._weigh(group) for group in groups]

    def observe(self, entropy_nats: float) -> None:
        """Steer by the entropy of the batch that `weigh` saw last and that was trained since.

        Where the credit gave no token a share, nothing is steered: the coefficient would wind up without effect.
        """
        if self._config.entropy_control != "aer" or not self._shared or not math.isfinite(entropy_nats):
            return
        if self._state.initial_nats is None:
            self._state.initial_nats = entropy_nats
        target = self._config.entropy_target_frac * self._state.initial_nats
        moved = self.coefficient + self._config.entropy_rate * (target - entropy_nats)
        self._state.coefficient = min(self._config.entropy_max_coef, max(0.0, moved))

    def figures(self, groups: Sequence[CreditedGroup]) -> dict[str, float]:
        """The metrics of a batch that `weigh` returned; call it before `observe`."""
        if self._config.entropy_control == "none":
            return {}
        weights: Counter[float] = Counter()
        for credit in (group.credit for group in groups):
            for i, included in enumerate(credit.included):
                if included:
                    row = credit.entropy_weights[i] if credit.entropy_weights else NO_RUNS
                    weights += row.counts() or Counter({0.0: len(credit.advantages[i])})
        count = max(1, weights.total())
        figures = {
            "entropy/bonus_coef": self.coefficient,
            "entropy/weight_mean": exact_sum(weights.items()) / count,
            "entropy/weighted_frac": sum(n for w, n in weights.items() if w != 0) / count,
        }
        return figures if self.target_nats is None else {**figures, "entropy/target_nats": self.target_nats}

    def _weigh(self, group: CreditedGroup) -> CreditedGroup:
        credit = group.credit
        scale = self.coefficient * self._need(group)
        if scale == 0.0:
            return replace(group, credit=replace(credit, entropy_weights=()))
        shares = credit.entropy_weights or tuple(Runs.constant(1.0, len(row)) for row in credit.advantages)
        rows = tuple(row.map(lambda share: scale * share) for row in shares)
        return replace(group, credit=replace(credit, entropy_weights=rows))

    def _need(self, group: CreditedGroup) -> float:
        """max(0, 1 - passrate / rho) of the question, over the valid verdicts; 1 where it does not count."""
        rho = self._config.entropy_pass_rate
        if self._config.entropy_control != "aer" or not rho or not group.rewards:
            return 1.0
        return max(0.0, 1.0 - sum(group.rewards) / len(group.rewards) / rho)
