"""95% intervals over a few seeds, by Student's distribution: resamples of three to five seeds would be too narrow.

(In a simulation of two arms with the spread that CAPO and GRPO have, the percentile bootstrap of a share held the
truth in 75% of the cases with three seeds and in 85% with five, the jackknife in 91 and 92%.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5% points of Student's distribution by degrees of freedom; from ten on 2.228 is a little wide."""


def of_mean(values: Sequence[float]) -> tuple[float, float]:
    """The interval of the mean of two or more values, one for each seed."""
    width = STUDENT.get(len(values) - 1, 2.228) * statistics.stdev(values) / math.sqrt(len(values))
    middle = statistics.fmean(values)
    return middle - width, middle + width


def of_ratio(ratio: Callable[[Sequence[int]], float], count: int) -> tuple[float, float] | None:
    """The interval of `ratio` of all seeds 0..count-1, from the same without each one of them (Tukey's jackknife).

    On the scale of logarithms. None where without some seed there is no positive and finite ratio.
    """
    every = list(range(count))
    without = [ratio(every[:i] + every[i + 1 :]) for i in every]
    if not all(0 < x < math.inf for x in without):
        return None
    whole = math.log(ratio(every))
    low, high = of_mean([count * whole - (count - 1) * math.log(x) for x in without])
    middle = (low + high) / 2  # the pseudo-values' mean would correct a bias; their spread alone is taken
    return math.exp(whole + low - middle), math.exp(whole + high - middle)
