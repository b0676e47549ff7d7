"""REINFORCE++ with baseline: the group gives the baseline, the batch gives the scale (arXiv 2501.03262).

A rule sees one group; `scale_batch` is the second half, for whoever puts groups together into a batch. Groups without
credit are left out of batches, and so of the batch's scale (our choice; the paper's counts their zeros).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from capo_ray.config.credit import CreditBase
from capo_ray.credit import rows as r
from capo_ray.credit.statistics import centre_scalars, standardise
from capo_ray.types import Group, GroupCredit


def reinforce_pp(group: Group, config: CreditBase, progress: float = 0.0) -> GroupCredit:
    """A_i = r_i - mean over the valid responses, not yet scaled."""
    rewards = r.outcome_rewards(group)
    return r.to_outcome_credit(group, centre_scalars(rewards, r.response_weights(group)), rewards)


def scale_batch(credits: Sequence[GroupCredit], config: CreditBase) -> tuple[GroupCredit, ...]:
    """The credits of the groups of one batch, standardised over all their valid tokens where the method asks for it.

    Every method but `reinforce_pp` gets back what it gave.
    """
    if config.method != "reinforce_pp":
        return tuple(credits)
    rows = [row for credit in credits for row in credit.advantages]
    weights = [float(ok) for credit in credits for ok in credit.included]
    scaled = iter(standardise(rows, weights))
    return tuple(
        replace(credit, advantages=tuple(tuple(next(scaled)) for _ in credit.advantages)) for credit in credits
    )
