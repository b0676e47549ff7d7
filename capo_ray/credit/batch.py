"""The half of a method that needs the whole batch: its advantages on one scale for all groups.

A rule sees one group; whoever puts groups together into a batch calls `scale_batch`. Groups without credit that are
left out of a batch (`stream.replace_creditless`) are left out of its scale, where the papers count their zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from capo_ray.config.credit import CreditBase
from capo_ray.credit.statistics import standardise
from capo_ray.types import GroupCredit


def scale_batch(credits: Sequence[GroupCredit], config: CreditBase) -> tuple[GroupCredit, ...]:
    """The credits of one batch's groups, standardised over all their valid tokens where the method asks for it.

    Population deviation; the authors of VinePPO and PRIME take the sample's, a factor of sqrt(1 - 1/n) for n tokens.
    """
    if not config.whitens_batch:
        return tuple(credits)
    rows = [row for credit in credits for row in credit.advantages]
    weights = [float(ok) for credit in credits for ok in credit.included]
    scaled = iter(standardise(rows, weights))
    return tuple(replace(credit, advantages=tuple(next(scaled) for _ in credit.advantages)) for credit in credits)
