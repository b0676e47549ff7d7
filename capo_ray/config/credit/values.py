"""Methods that read values or rewards from elsewhere: Monte-Carlo rollouts, a second model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from capo_ray.config.base import Idle
from capo_ray.config.credit.base import Beside, CreditBase
from capo_ray.config.credit.requests import StepValues, TokenRewards


class VinePpoConfig(CreditBase):
    """VinePPO (2410.01679): a step's advantage is the change of the Monte-Carlo value across it."""

    source: ClassVar[str] = "2410.01679"
    rule: ClassVar[str] = "capo_ray.credit.vineppo:vineppo"
    method: Literal["vineppo"] = "vineppo"
    rollouts_per_prefix: int = Field(9, ge=1)
    """Continuations from which the value of each prefix is estimated; each costs up to a whole response."""
    whiten: bool = True
    """Standardise advantages over the batch, as the authors' runs do; false: bare differences of values (eq. 7)."""

    def evidence(self) -> tuple[StepValues, ...]:
        """Monte-Carlo values."""
        return (StepValues(self.rollouts_per_prefix),)

    @property
    def whitens_batch(self) -> bool:
        """As `whiten` says."""
        return self.whiten


class PrimeConfig(CreditBase):
    """PRIME (2502.01456): implicit token rewards summed to the end, each part with its leave-one-out baseline."""

    source: ClassVar[str] = "2502.01456"
    rule: ClassVar[str] = "capo_ray.credit.prime:prime"
    method: Literal["prime"] = "prime"
    form: Literal["paper", "code"] = "paper"
    """paper: eq. 5, each token against the others' mean token; code: the authors' program (see credit/prime.py)."""
    whiten: bool = True
    """Standardise advantages over the batch, as the authors' program does."""

    def evidence(self) -> tuple[TokenRewards, ...]:
        """Log-ratios of a model that is trained on the outcomes."""
        return (TokenRewards("prime"),)

    @property
    def whitens_batch(self) -> bool:
        """As `whiten` says."""
        return self.whiten


class IstarConfig(CreditBase):
    """iStar (2509.19199): implicit step rewards beside the episode's, each with its own group advantage."""

    source: ClassVar[str] = "2509.19199"
    reads_sampler_logprobs: ClassVar[bool] = True
    rule: ClassVar[str] = "capo_ray.credit.istar:istar"
    method: Literal["istar"] = "istar"
    w_step: float = Field(1.0, ge=0)
    """Weight of the step advantage."""

    def evidence(self) -> tuple[TokenRewards, ...]:
        """Log-ratios of a model that is trained on pairs of siblings."""
        return (TokenRewards("istar"),)


class QrmConfig(CreditBase):
    """Q-RM (2505.23363): the token rewards of a discriminative reward model, scaled but not centred."""

    source: ClassVar[str] = "2505.23363"
    rule: ClassVar[str] = "capo_ray.credit.qrm:qrm"
    method: Literal["qrm"] = "qrm"
    outcome_until: float = Field(0.0, ge=0, le=1)
    """Share of the run in which the group-normalised outcome is the credit and the reward model only learns (ours)."""

    def evidence(self) -> tuple[TokenRewards, ...]:
        """The scalars of a discriminative model."""
        return (TokenRewards("qrm"),)


class EtpoConfig(CreditBase):
    """ETPO-like (after 2402.06700): the change of a trained soft value across each token, the outcome at the end."""

    source: ClassVar[str] = "2402.06700"
    reads_sampler_logprobs: ClassVar[bool] = True
    rule: ClassVar[str] = "capo_ray.credit.etpo:etpo"
    method: Literal["etpo"] = "etpo"
    trace_decay: float = Field(0.95, ge=0, le=1)
    """How far changes of value count for earlier tokens, and targets look ahead; 0: one token, as in the paper."""
    turn_discount: float = Field(0.99, ge=0, le=1)
    """What the next turn's value counts at the end of a turn (gamma); within a turn nothing is discounted."""

    def evidence(self) -> tuple[TokenRewards, ...]:
        """Soft values of every prefix."""
        return (TokenRewards("etpo", self.trace_decay, self.turn_discount),)

    def idle_beside(self, config: Beside) -> tuple[Idle, ...]:
        """The discount between turns where there is one."""
        why = "with environment.kind=none, where a response is one turn; remove it or choose an environment"
        return (Idle(("credit.turn_discount",), not config.environment.plays, why),)
