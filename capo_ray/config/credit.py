"""The credit methods' configs. Each names the evidence it needs; the pipeline gathers exactly that."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from capo_ray.config.base import Section

Needs = Literal["critiques", "answer_logprobs", "step_values", "token_rewards", "entropies", "overall"]
Vote = Literal["intersection", "majority", "union", "average", "greedy"]
Segmenter = Literal["blank_line", "newline", "sentence", "entropy"]


class CreditBase(Section):
    """What all credit methods share."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Kinds of evidence that the method reads, beside the verdict."""
    source: ClassVar[str] = ""
    """arXiv id of the paper that defines the method."""
    required_loss: ClassVar[dict[str, str]] = {}
    """Keys of the loss section without which the method is another one."""
    method: str
    segmenter: Segmenter = "blank_line"
    """Where a response is cut into steps."""


class CapoConfig(CreditBase):
    """CAPO (2508.02298): the critics' vote on each step is taken off the outcome reward of its tokens."""

    needs: ClassVar[frozenset[str]] = frozenset({"critiques"})
    source: ClassVar[str] = "2508.02298"
    method: Literal["capo"] = "capo"
    vote: Vote = "majority"
    """How the valid critiques of a response become one weight per step."""
    quorum: int = Field(1, ge=1)
    """Valid critiques that a response needs; below it, it gets outcome-only credit."""
    w_whole: float = Field(2.0, gt=0)
    """Reward of every token of a right answer (W_whole of eq. 1)."""
    w_process: float = Field(1.0, ge=0)
    """Penalty of every token of a wrong step (W_process of eq. 1)."""
    w_format: float = Field(0.0, ge=0)
    """Reward of every token of a response in the asked-for format (our reading of the paper's "format reward")."""
    normalisation: Literal["pooled", "separate", "leave_one_out"] = "pooled"
    """How token rewards become advantages: pooled is eq. 2; the others are ours."""
    weighting: Literal["token", "trajectory"] = "token"
    """Whether each token or each response counts the same in the group's mean and deviation (token: eq. 2)."""
    ramp_frac: float = Field(0.0, ge=0, le=1)
    """Share of the run over which W_process grows linearly from 0 to its value; 0: constant from the start."""
    keep_outcome_sign: bool = False
    """Set to 0 what would lower a token of a right answer or raise a token of a wrong one."""

    @model_validator(mode="after")
    def _refuse_combinations(self) -> CapoConfig:
        if self.vote == "greedy" and self.quorum > 1:
            raise ValueError(f"vote=greedy reads one critique, so quorum must be 1 (got {self.quorum})")
        return self


class GrpoConfig(CreditBase):
    """GRPO (2402.03300): the group-normalised outcome, the same for every token of a response."""

    source: ClassVar[str] = "2402.03300"
    method: Literal["grpo"] = "grpo"


class DrGrpoConfig(CreditBase):
    """Dr. GRPO (2503.20783): outcome minus the group's mean, undivided; the loss divides by a constant length."""

    source: ClassVar[str] = "2503.20783"
    method: Literal["dr_grpo"] = "dr_grpo"


class RlooConfig(CreditBase):
    """RLOO (2402.14740): outcome minus the mean of the other responses."""

    source: ClassVar[str] = "2402.14740"
    method: Literal["rloo"] = "rloo"


class ReinforcePpConfig(CreditBase):
    """REINFORCE++ with baseline (2501.03262): outcome minus the group's mean, on one scale for all groups."""

    source: ClassVar[str] = "2501.03262"
    method: Literal["reinforce_pp"] = "reinforce_pp"


class DapoConfig(CreditBase):
    """DAPO (2503.14476): GRPO with overlong shaping; clip-higher and the token mean stand in its loss preset."""

    source: ClassVar[str] = "2503.14476"
    method: Literal["dapo"] = "dapo"
    overlong_max_tokens: int = Field(0, ge=0)
    """Length from which on a response loses a whole point (L_max); 0: no shaping. Of use up to the sampling limit."""
    overlong_buffer_tokens: int = Field(0, ge=0)
    """Tokens before that over which the loss grows linearly from 0 (L_cache)."""

    @model_validator(mode="after")
    def _refuse_combinations(self) -> DapoConfig:
        if self.overlong_buffer_tokens > self.overlong_max_tokens:
            raise ValueError(
                f"overlong_buffer_tokens must be <= overlong_max_tokens "
                f"(got {self.overlong_buffer_tokens} > {self.overlong_max_tokens})"
            )
        return self


class GspoConfig(CreditBase):
    """GSPO (2507.18071): GRPO's credit under a sequence-level ratio."""

    source: ClassVar[str] = "2507.18071"
    required_loss: ClassVar[dict[str, str]] = {"ratio": "sequence"}
    method: Literal["gspo"] = "gspo"


class CispoConfig(CreditBase):
    """CISPO (2506.13585): GRPO's credit under a clipped ratio that is a constant weight of the log-probability."""

    source: ClassVar[str] = "2506.13585"
    required_loss: ClassVar[dict[str, str]] = {"ratio": "cispo"}
    method: Literal["cispo"] = "cispo"


class GenormConfig(CreditBase):
    """GRPO-GenORM (baseline of 2508.02298): the critics' overall verdict beside the rule's, one number a response."""

    needs: ClassVar[frozenset[str]] = frozenset({"critiques", "overall"})
    source: ClassVar[str] = "2508.02298"
    vote: ClassVar[str] = "average"
    """Read by the critic tier: an average is never decided early, and every overall verdict counts here."""
    quorum: ClassVar[int] = 1
    method: Literal["grpo_genorm"] = "grpo_genorm"
    alpha: float = Field(1.0, gt=0)
    """Scale of the critics' verdict inside the sigmoid (our choice)."""
    beta: float = Field(2.0, ge=0)
    """Weight of the rule's reward (our choice: 2 makes that part -1 or 1)."""


class AcpoConfig(CreditBase):
    """ACPO after 2510.08899, by our own definition: steps weighed by what they add to the answer's likelihood."""

    needs: ClassVar[frozenset[str]] = frozenset({"answer_logprobs"})
    source: ClassVar[str] = "2510.08899"
    method: Literal["acpo"] = "acpo"
    segmenter: Segmenter = "entropy"
    """Where a response is cut into steps."""
    answer_cue: str = "\\boxed{"
    """Text put before the reference answer where it is scored after each step."""
    beta: float = Field(0.5, ge=0)
    """How far a step's attribution moves its weight from 1."""
    stage2_from: float = Field(0.5, ge=0, le=1)
    """Share of the run after which rewards are weighed by confidence; 1: at the very end only."""
    kappa: float = Field(0.5, ge=0, le=1)
    """Weight of that confidence."""


class MigConfig(CreditBase):
    """MIG (2602.01034): new heights of the answer's likelihood are rewarded on the reasoning, beside the outcome."""

    needs: ClassVar[frozenset[str]] = frozenset({"answer_logprobs"})
    source: ClassVar[str] = "2602.01034"
    method: Literal["mig"] = "mig"
    answer_cue: str = "\\boxed{"
    """Text put before the reference answer where it is scored after each step."""
    w_gain: float = Field(1.0, ge=0)
    """Weight of the gain's advantage beside the outcome's (our choice)."""


class PureConfig(CreditBase):
    """PURE (2504.15275): a response is worth its worst step (min-form), here judged by critics."""

    needs: ClassVar[frozenset[str]] = frozenset({"critiques"})
    source: ClassVar[str] = "2504.15275"
    method: Literal["pure"] = "pure"
    vote: Vote = "average"
    """How the valid critiques of a response become one weight per step."""
    quorum: int = Field(1, ge=1)
    """Valid critiques that a response needs; below it, it gets outcome-only credit."""
    temperature: float = Field(0.1, gt=0)
    """Of the soft minimum; towards 0 it becomes the minimum."""
    w_process: float = Field(1.0, ge=0)
    """Weight of the process return beside the outcome (our choice)."""


class VinePpoConfig(CreditBase):
    """VinePPO (2410.01679): a step's advantage is the change of the Monte-Carlo value across it."""

    needs: ClassVar[frozenset[str]] = frozenset({"step_values"})
    source: ClassVar[str] = "2410.01679"
    method: Literal["vineppo"] = "vineppo"


class PrimeConfig(CreditBase):
    """PRIME (2502.01456): implicit token rewards summed to the end, each part with its leave-one-out baseline."""

    needs: ClassVar[frozenset[str]] = frozenset({"token_rewards"})
    source: ClassVar[str] = "2502.01456"
    method: Literal["prime"] = "prime"


class IstarConfig(CreditBase):
    """iStar (2509.19199): implicit step rewards beside the episode's, each with its own group advantage."""

    needs: ClassVar[frozenset[str]] = frozenset({"token_rewards"})
    source: ClassVar[str] = "2509.19199"
    method: Literal["istar"] = "istar"
    w_step: float = Field(1.0, ge=0)
    """Weight of the step advantage."""


class QrmConfig(CreditBase):
    """Q-RM (2505.23363): the token rewards of a discriminative reward model, scaled but not centred."""

    needs: ClassVar[frozenset[str]] = frozenset({"token_rewards"})
    source: ClassVar[str] = "2505.23363"
    method: Literal["qrm"] = "qrm"


_CLASSES: tuple[type[CreditBase], ...] = (
    CapoConfig,
    GrpoConfig,
    DrGrpoConfig,
    RlooConfig,
    ReinforcePpConfig,
    DapoConfig,
    GspoConfig,
    CispoConfig,
    GenormConfig,
    AcpoConfig,
    MigConfig,
    PureConfig,
    VinePpoConfig,
    PrimeConfig,
    IstarConfig,
    QrmConfig,
)
CREDIT_METHODS: dict[str, type[CreditBase]] = {c.model_fields["method"].default: c for c in _CLASSES}

OFFLINE_ONLY: dict[str, str] = {
    "vineppo": "Monte-Carlo values of every prefix",
    "prime": "token rewards of a second model that is trained beside the policy",
    "istar": "token rewards of a second model that is trained beside the policy",
    "qrm": "token rewards of a trained reward model",
}
"""Methods whose evidence no part of a training run gathers: their math is there for `capo-ray credit` alone."""


def refuse_offline_only(config: Any) -> Any:
    """`config`, unless its method exists offline only."""
    if config.method in OFFLINE_ONLY:
        raise ValueError(
            f"credit={config.method} reads {OFFLINE_ONLY[config.method]}, which a training run does not gather; "
            f"use it offline (capo-ray credit {config.method} --input groups.jsonl) or choose another method"
        )
    return config


def refuse_other_loss(config: CreditBase, loss: Section) -> None:
    """Raise where the loss section would make the method another one (`credit=gspo` with loss.ratio=token)."""
    for key, wanted in config.required_loss.items():
        got = getattr(loss, key)
        if got != wanted:
            raise ValueError(
                f"credit.method={config.method} needs loss.{key}={wanted} (got {got}); write credit={config.method}, "
                f"which sets it"
            )


CreditConfig = Annotated[
    CapoConfig
    | GrpoConfig
    | DrGrpoConfig
    | RlooConfig
    | ReinforcePpConfig
    | DapoConfig
    | GspoConfig
    | CispoConfig
    | GenormConfig
    | AcpoConfig
    | MigConfig
    | PureConfig
    | VinePpoConfig
    | PrimeConfig
    | IstarConfig
    | QrmConfig,
    Field(discriminator="method"),
    AfterValidator(refuse_offline_only),
]
