"""Groups in which no critique could change an advantage, so that a critic need not be asked.

    CAPO     W_process is 0 at this moment of the run, or one single response counts and its tokens have no other
             response to differ from (leave-one-out) or no other step (pooled, separate)
    PURE     w_process is 0, or one single response counts (its process part has no baseline)
    GenORM   one single response counts: one number a response, standardised
    Cliff    the outcomes are all alike
    VPPO     no response is wrong: only good prefixes of wrong ones are looked for

Exact: the advantages are equal whatever the critics would say. Token rewards and step weights, which no learner sees,
may differ. A method that is not listed is never skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from capo_ray.credit.capo import ramp_share
from capo_ray.types import Judged


def critiques_matter(members: Sequence[Judged], config: Any, progress: float) -> bool:
    """Whether any critique of the members (those with a valid verdict) could change an advantage of the group."""
    counted = [member for member in members if member.verdict.valid and member.num_tokens]
    if not counted:
        return False
    alone = len(counted) == 1
    if config.method == "capo":
        one_step = sum(end > start for start, end in counted[0].steps) == 1
        even = alone and (one_step or config.normalisation == "leave_one_out")
        return not (even or config.w_process == 0.0 or ramp_share(config, progress) == 0.0)
    if config.method == "pure":
        return not (alone or config.w_process == 0.0)
    if config.method == "grpo_genorm":
        return not alone
    if config.method == "cliff":
        return len({member.verdict.reward for member in counted}) > 1
    if config.method == "vppo":
        return any(not member.verdict.reward for member in counted)
    return True
