"""The table of credit rules: one line per method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from capo_ray.config.credit import CreditBase
from capo_ray.credit.acpo import acpo
from capo_ray.credit.capo import capo
from capo_ray.credit.cispo import cispo
from capo_ray.credit.cliff import cliff
from capo_ray.credit.dapo import dapo
from capo_ray.credit.dr_grpo import dr_grpo
from capo_ray.credit.etpo import etpo
from capo_ray.credit.grpo import grpo
from capo_ray.credit.grpo_genorm import grpo_genorm
from capo_ray.credit.gspo import gspo
from capo_ray.credit.istar import istar
from capo_ray.credit.mig import mig
from capo_ray.credit.prime import prime
from capo_ray.credit.pure import pure
from capo_ray.credit.qrm import qrm
from capo_ray.credit.reinforce_pp import reinforce_pp
from capo_ray.credit.rloo import rloo
from capo_ray.credit.rlsd import rlsd
from capo_ray.credit.vineppo import vineppo
from capo_ray.credit.vppo import vppo
from capo_ray.steps import check_spans
from capo_ray.types import Group, GroupCredit

# method -> (group, its own config class, progress 0..1) -> credit
CREDIT_RULES: dict[str, Callable[[Group, Any, float], GroupCredit]] = {
    "capo": capo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "dapo": dapo,
    "gspo": gspo,
    "cispo": cispo,
    "grpo_genorm": grpo_genorm,
    "acpo": acpo,
    "mig": mig,
    "pure": pure,
    "cliff": cliff,
    "vppo": vppo,
    "rlsd": rlsd,
    "vineppo": vineppo,
    "prime": prime,
    "istar": istar,
    "qrm": qrm,
    "etpo": etpo,
}


def assign_credit(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """The per-token credit of a judged group under `config.method`; `progress` is the share of the run done, 0..1.

    Raises `SpanError` where the steps of a member do not tile its tokens.
    """
    for member in group.members:
        check_spans(member.steps, member.num_tokens)
    return CREDIT_RULES[config.method](group, config, progress)
