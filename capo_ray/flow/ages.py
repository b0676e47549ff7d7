"""What age makes of a batch: which tokens are trained, which are masked, and where each response ends in the ledger.

A token is young while version - its version <= stream.max_age. A response of which none is young is not trained; its
verdict and its evidence have counted in the credit of its siblings all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from capo_ray.flow.group import CreditedGroup
from capo_ray.types import TrajectoryKey, VersionRun


@dataclass(frozen=True, slots=True)
class Sorted:
    """The responses of a batch by their end, and the tokens of those with a valid verdict by age.

    `masked[i]` counts the tokens of `trained[i]` that are too old; `lengths` are (tokens, young ones) of each valid
    response.
    """

    max_age: int
    trained: tuple[TrajectoryKey, ...]
    masked: tuple[int, ...]
    stale: tuple[TrajectoryKey, ...]
    invalid: tuple[TrajectoryKey, ...]
    ages: Counter[int]
    lengths: tuple[tuple[int, int], ...]

    @property
    def num_masked(self) -> int:
        """Tokens with a valid verdict and no weight, those of the stale responses included."""
        return sum(n for age, n in self.ages.items() if age > self.max_age)

    def figures(self) -> dict[str, float]:
        """The ages of the trained tokens, and what was too old; names as in metrics.

        `trained_length_ratio` is the mean length of responses, each counted by the share of it that is trained, over
        that of all: 1 where age does not ask for length.
        """
        shares = [young / tokens for tokens, young in self.lengths]
        young = Counter({age: n for age, n in self.ages.items() if age <= self.max_age})
        return {
            "stream/age_max": float(max(young)),
            "stream/age_mean": sum(age * n for age, n in young.items()) / young.total(),
            "stream/masked_frac": self.num_masked / self.ages.total(),
            "stream/stale_responses_frac": len(self.stale) / len(shares),
            "stream/trained_length_ratio": young.total() / sum(shares) / (self.ages.total() / len(shares)),
        }


def sort_by_age(groups: Sequence[CreditedGroup], version: int, max_age: int) -> Sorted:
    """The responses of `groups`, trained at `version`, by what becomes of them."""
    trained: list[TrajectoryKey] = []
    masked: list[int] = []
    stale: list[TrajectoryKey] = []
    invalid: list[TrajectoryKey] = []
    ages: Counter[int] = Counter()
    lengths: list[tuple[int, int]] = []
    for group in groups:
        for member, included in zip(group.group.members, group.credit.included, strict=True):
            key = member.trajectory.key
            if not included:
                invalid.append(key)
                continue
            own = _ages(member.trajectory.response.versions, version)
            ages += own
            num_old = sum(n for age, n in own.items() if age > max_age)
            lengths.append((own.total(), own.total() - num_old))
            if num_old == own.total():
                stale.append(key)
            else:
                trained.append(key)
                masked.append(num_old)
    return Sorted(max_age, tuple(trained), tuple(masked), tuple(stale), tuple(invalid), ages, tuple(lengths))


def _ages(versions: Sequence[VersionRun], version: int) -> Counter[int]:
    """How many tokens have each age at `version`."""
    ages: Counter[int] = Counter()
    for start, run in zip([0, *(r.end for r in versions)], versions, strict=False):
        ages[version - run.version] += run.end - start
    return ages
