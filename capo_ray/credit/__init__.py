"""Credit: turns a judged group into one advantage per response token, before the learner, which never knows how.

    Group (verdicts, steps, evidence) --rule(config)--> GroupCredit (advantages [G][T])

A method is one file here, one config class, one line in `config.credit`, one test with numbers made by hand.
Invariants: a rule is pure; permuting siblings permutes advantages; an invalid verdict counts for nothing and gets
zeros; a group whose rewards are all equal gets zeros, never NaN (VinePPO, ETPO-like: one whose values do not change).
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from capo_ray.credit.audit import audit
from capo_ray.credit.batch import scale_batch
from capo_ray.credit.indifferent import critiques_matter
from capo_ray.credit.rows import EvidenceError
from capo_ray.credit.table import assign_credit

__all__ = [
    "EvidenceError",
    "assign_credit",
    "audit",
    "critiques_matter",
    "scale_batch",
]


class _Room(ModuleType):
    """The name `capo_ray.credit` is this room's and also the library's function: a call of the room is one of it."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return import_module("capo_ray.api").credit(*args, **settings)


sys.modules[__name__].__class__ = _Room
