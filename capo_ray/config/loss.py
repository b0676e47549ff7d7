"""The policy loss, and what keeps its entropy from collapsing; usable with every credit method."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from capo_ray.config.base import Idle, Section


class LossConfig(Section):
    """The policy loss; the same for every credit method unless its preset says otherwise."""

    ratio: Literal["token", "sequence", "cispo"] = "token"
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.2, ge=0)
    kl_coef: float = Field(0.01, ge=0)
    """Weight of KL(policy || frozen reference), estimator k3."""
    aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = "sequence_mean"
    """sequence_mean: (1/n) sum_i (1/L_i) sum_t; token_mean: one mean over all tokens; constant_length: Dr.GRPO's."""
    behaviour: Literal["sampler", "recompute"] = "sampler"
    """Denominator of the ratio: the engine's logprobs, or the learner's own before a batch (needed with top_p < 1)."""
    max_mismatch_nats: float = Field(0.2, gt=0)
    """Mean divergence (k3) of engine and learner per token above which `loss/mismatch_alarm` is 1; said once."""
    correction: Literal["none", "truncate", "mask", "geometric_mask"] = "none"
    """For tokens on which engine and learner disagree, rho = learner / sampler: truncate weighs by min(rho, high), mask
    by rho inside [low, high] and 0 outside, geometric_mask drops responses whose mean rho is outside."""
    correction_low: float = Field(0.5, ge=0)
    correction_high: float = Field(2.0, gt=0)
    entropy_control: Literal["none", "fixed", "lica", "aer"] = "none"
    """What the entropy bonus is multiplied by: fixed: entropy_coef; lica (2007.02529): entropy_coef divided by the
    response's mean entropy; aer (form reconstructed after
    2510.10959): a coefficient that is steered towards a target entropy."""
    entropy_coef: float = 0.0
    """fixed, lica: the coefficient; aer: the value that the steered coefficient starts from."""
    entropy_target_frac: float = Field(0.4, ge=0)
    """aer: target entropy as a share of the entropy at the first update (tau)."""
    entropy_rate: float = Field(0.05, ge=0)
    """aer: change of the coefficient per update and nat below the target (eta; our choice)."""
    entropy_max_coef: float = Field(0.1, ge=0)
    """aer: the coefficient stays between 0 and this (our choice)."""
    entropy_pass_rate: float = Field(0.5, ge=0, le=1)
    """aer: pass rate of a question from which on it gets no bonus (rho; our choice); 0: all questions alike."""
    covariance: Literal["none", "clip", "kl"] = "none"
    """Hold back the tokens whose log-probability and advantage go together most (2505.22617): clip takes the policy
    gradient from a few of those between covariance_low and covariance_high, kl penalises those with the largest."""
    covariance_frac: float = Field(0.0, ge=0, le=1)
    """Share of the batch's tokens that are picked; 0: the authors' own, 0.0002 for clip and 0.002 for kl."""
    covariance_low: float = 1.0
    """clip: lower end of the band."""
    covariance_high: float = 5.0
    """clip: upper end of the band."""
    covariance_kl_coef: float = Field(1.0, ge=0)
    """kl: weight of the penalty |log pi - log pi_behaviour|."""

    @property
    def picked_frac(self) -> float:
        """The share of the batch's tokens that are picked, the authors' where none is given."""
        return self.covariance_frac or (0.0002 if self.covariance == "clip" else 0.002)

    @model_validator(mode="after")
    def _refuse_combinations(self) -> LossConfig:
        if self.correction != "none" and self.behaviour != "recompute":
            raise ValueError(
                f"loss.correction={self.correction} weighs learner against sampler, which the ratio already does with "
                f"loss.behaviour=sampler; add loss.behaviour=recompute"
            )
        for low, high in (("correction_low", "correction_high"), ("covariance_low", "covariance_high")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"loss.{low} must be <= loss.{high} (got {getattr(self, low)} > {getattr(self, high)})"
                )
        if self.entropy_control in ("fixed", "lica") and self.entropy_coef == 0:
            raise ValueError(
                f"loss.entropy_control={self.entropy_control} needs loss.entropy_coef other than 0 (got 0), or it "
                f"does nothing"
            )
        if self.entropy_control == "aer" and not 0 <= self.entropy_coef <= self.entropy_max_coef:
            raise ValueError(
                f"loss.entropy_coef must lie in [0, loss.entropy_max_coef] with loss.entropy_control=aer "
                f"(got {self.entropy_coef} and {self.entropy_max_coef})"
            )
        return self

    def idle(self) -> tuple[Idle, ...]:
        """Keys of a control that is off."""
        return (
            Idle(
                ("correction_low", "correction_high"),
                self.correction == "none",
                "with loss.correction=none; remove it or choose a correction",
            ),
            Idle(
                ("correction_low",),
                self.correction == "truncate",
                "with loss.correction=truncate, which only bounds from above; remove it or choose another correction",
            ),
            Idle(
                ("entropy_coef",),
                self.entropy_control == "none",
                "with loss.entropy_control=none; add loss.entropy_control=fixed, lica or aer",
            ),
            Idle(
                ("entropy_target_frac", "entropy_rate", "entropy_max_coef", "entropy_pass_rate"),
                self.entropy_control != "aer",
                "unless loss.entropy_control=aer, which alone is steered; remove it or choose that control",
            ),
            Idle(
                ("covariance_frac",),
                self.covariance == "none",
                "with loss.covariance=none; add loss.covariance=clip or kl",
            ),
            Idle(
                ("covariance_low", "covariance_high"),
                self.covariance != "clip",
                "unless loss.covariance=clip; remove it or choose that control",
            ),
            Idle(
                ("covariance_kl_coef",),
                self.covariance != "kl",
                "unless loss.covariance=kl; remove it or choose that control",
            ),
        )
