"""Learners: batches in, weights out; blind to where the advantages came from.

    Batch.column(rank) --microbatch--> tensors --policy--> logprobs --loss--> gradient --zero--> update

One `Learner` is one rank of a group; all ranks call the same methods in the same order. DeepSpeed is known to `zero`
alone, behind a handful of methods.
"""

from capo_ray.learners.learner import Learner
from capo_ray.learners.spec import LearnerSpec

__all__ = ["Learner", "LearnerSpec"]
