"""Learners: batches in, weights out; blind to where the advantages came from.

    Batch.column(rank) --microbatch--> tensors --policy--> logprobs --loss--> gradient --zero--> update

    judged groups --reward_batch--> column, labels --reward--> token rewards, gradient --zero--> update

One `Learner` is one rank of a group, and so is one `RewardLearner`, which holds a second model; all ranks of a group
call the same methods in the same order. Both work through a `Backend`: `zero`, the one file that knows DeepSpeed, or
`plain`, one rank in torch alone. Importing this package imports none of them: torch comes with a learner's name.
"""

from typing import TYPE_CHECKING

from capo_ray.imports import on_demand
from capo_ray.learners.spec import LearnerSpec, RewardSpec

if TYPE_CHECKING:
    from capo_ray.learners.alone import LearnerAlone
    from capo_ray.learners.learner import Learner
    from capo_ray.learners.reward import RewardLearner

__all__ = ["Learner", "LearnerAlone", "LearnerSpec", "RewardLearner", "RewardSpec"]
__getattr__ = on_demand(__name__, "learner", "alone", "reward")
