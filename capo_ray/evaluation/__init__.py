"""How good a policy is, as numbers: what a run's held-out evaluation and `capo-ray eval` count alike. No Ray, no model.

Judgement (one response) -> figures of a suite, each with an interval      two suites -> Comparison, paired
"""

from capo_ray.evaluation.statistics import (
    Comparison,
    Estimate,
    Judgement,
    compare,
    estimate,
    figures,
    majority,
    mean_reward,
    pass_at,
    shares,
    sign_test,
    spelt,
)

__all__ = [
    "Comparison",
    "Estimate",
    "Judgement",
    "compare",
    "estimate",
    "figures",
    "majority",
    "mean_reward",
    "pass_at",
    "shares",
    "sign_test",
    "spelt",
]
