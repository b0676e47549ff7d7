"""What the configs of all credit methods share."""

from __future__ import annotations

from typing import ClassVar, Protocol, TypeVar

from pydantic import Field, model_validator

from capo_ray.config.base import Idle, RuledSection
from capo_ray.config.credit.requests import Request
from capo_ray.config.critic import CriticConfig
from capo_ray.config.environment import EnvironmentBase
from capo_ray.config.loss import LossConfig
from capo_ray.config.sections import LearnerConfig, RolloutConfig, VerifierConfig

Asked = TypeVar("Asked", bound=Request)


class Beside(Protocol):
    """The sections of a run that a method's rules on keys without effect may read; a `TrainConfig` has them."""

    @property
    def loss(self) -> LossConfig: ...
    @property
    def rollout(self) -> RolloutConfig: ...
    @property
    def critic(self) -> CriticConfig: ...
    @property
    def learner(self) -> LearnerConfig: ...
    @property
    def environment(self) -> EnvironmentBase: ...
    @property
    def verifier(self) -> VerifierConfig: ...


class CreditBase(RuledSection):
    """What all credit methods share; a rule is a function of (group, this config, progress 0..1)."""

    source: ClassVar[str] = ""
    """arXiv id of the paper that defines the method."""
    required_loss: ClassVar[dict[str, str]] = {}
    """Keys of the loss section without which the method is another one."""
    reads_sampler_logprobs: ClassVar[bool] = False
    """Whether the evidence is made from the sampler's logprobs."""
    reads_context: ClassVar[bool] = False
    """Whether it asks which sentences of the question's context a response quotes."""
    method: str

    @model_validator(mode="after")
    def _refuse_requests(self) -> CreditBase:
        self.evidence()  # a request that cannot be met raises where it is made
        return self

    def evidence(self) -> tuple[Request, ...]:
        """What the method reads beside the verdict, one request of a kind."""
        return ()

    def asked(self, kind: type[Asked]) -> Asked | None:
        """The request for one kind of evidence; None where the method does not read it."""
        return next((request for request in self.evidence() if isinstance(request, kind)), None)

    def idle_beside(self, config: Beside) -> tuple[Idle, ...]:
        """The rules on keys, written in full, that the method and the other sections tell together."""
        return ()

    @property
    def whitens_batch(self) -> bool:
        """Whether advantages are standardised over all valid tokens of a batch."""
        return False

    @property
    def reads_extracted(self) -> bool:
        """Whether it matters for the credit which answer the verifier extracted."""
        return False

    @property
    def reference_from(self) -> float | None:
        """Share of the run at which the policy of that moment becomes the one that KL is measured from; None: never."""
        return None

    def kl_scale(self, progress: float) -> float:
        """What multiplies loss.kl_coef at this share of the run."""
        return 1.0


class FormatBase(CreditBase):
    """A method whose outcome may have a reward for the format beside it."""

    w_format: float = Field(0.0, ge=0)
    """Added to the reward of a response in the asked-for format, one from which an answer could be extracted: our
    reading of the "format reward" with which 2508.02298 trains all its rows (0.2)."""

    @property
    def reads_extracted(self) -> bool:
        """Where the format is rewarded."""
        return self.w_format > 0

    def idle_beside(self, config: Beside) -> tuple[Idle, ...]:
        """A format that nobody sees."""
        why = "with a verifier that is a function, which extracts no answer; remove it or choose another verifier.kind"
        return (*super().idle_beside(config), Idle(("credit.w_format",), bool(config.verifier.function), why))
