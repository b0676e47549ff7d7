"""The credit methods' configs. Each asks for the evidence it reads; the pipeline gathers exactly that."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from capo_ray.config.base import Idle, Section
from capo_ray.config.credit.base import CreditBase
from capo_ray.config.credit.context import EapoConfig
from capo_ray.config.credit.critiques import CapoConfig, GenormConfig, PureConfig
from capo_ray.config.credit.first_error import CliffConfig, FirstErrorBase, VppoConfig
from capo_ray.config.credit.hints import RlsdConfig
from capo_ray.config.credit.likelihood import AcpoConfig, MigConfig
from capo_ray.config.credit.outcome import (
    CispoConfig,
    DapoConfig,
    DrGrpoConfig,
    GrpoConfig,
    GspoConfig,
    ReinforcePpConfig,
    RlooConfig,
)
from capo_ray.config.credit.requests import (
    KINDS,
    AnswerLogprobs,
    Critiques,
    Entropies,
    EvidenceScore,
    HintedLogprobs,
    Request,
    StepValues,
    TokenRewards,
    Turns,
    Vote,
    asks_once,
)
from capo_ray.config.credit.turns import GigpoConfig
from capo_ray.config.credit.values import EtpoConfig, IstarConfig, PrimeConfig, QrmConfig, VinePpoConfig
from capo_ray.config.families import Family

__all__ = [
    "CREDIT_METHODS",
    "KINDS",
    "AnswerLogprobs",
    "CreditBase",
    "CreditConfig",
    "Critiques",
    "Entropies",
    "EvidenceScore",
    "FirstErrorBase",
    "GrpoConfig",
    "HintedLogprobs",
    "Idle",
    "Request",
    "StepValues",
    "TokenRewards",
    "Turns",
    "Vote",
    "asks_once",
    "refuse_other_loss",
]

# A method is one line here, beside its config class and its rule.
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
    CliffConfig,
    VppoConfig,
    RlsdConfig,
    VinePpoConfig,
    PrimeConfig,
    IstarConfig,
    QrmConfig,
    EtpoConfig,
    GigpoConfig,
    EapoConfig,
)
CREDIT_METHODS = Family("credit", "method", CreditBase, "capo_ray.credit_methods", _CLASSES)


def refuse_other_loss(config: CreditBase, loss: Section) -> None:
    """Raise where the loss section would make the method another one (`credit=gspo` with loss.ratio=token)."""
    for key, wanted in config.required_loss.items():
        got = getattr(loss, key)
        if got != wanted:
            raise ValueError(
                f"credit.method={config.method} needs loss.{key}={wanted} (got {got}); write credit={config.method}, "
                f"which sets it"
            )


CreditConfig: TypeAlias = Annotated[CreditBase, CREDIT_METHODS]
"""The config of any method, told by `method`."""
