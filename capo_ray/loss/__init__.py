"""The policy loss as naked math: numbers in, numbers out; it knows neither models nor credit methods.

Tensors are flat: the response tokens of all sequences of a microbatch, one after another.
N tokens, S sequences, V vocabulary.

    hidden [N, h] --head_logprobs--> policy_logprobs [N] --policy_loss--> sum_t w_t * loss_t
    logits [N, V] --token_logprobs-->
"""

from capo_ray.loss.covariance import covariance_band, covariance_penalties, covariances
from capo_ray.loss.entropy import adaptive_entropy_weights
from capo_ray.loss.head import head_logprobs
from capo_ray.loss.logprobs import token_logprobs
from capo_ray.loss.mismatch import correction_weights, mismatch_figures
from capo_ray.loss.policy import Figures, policy_loss
from capo_ray.loss.reward import (
    Reduction,
    outcome_loss,
    pair_loss,
    rank_pairs,
    response_score,
    score_divisor,
    soft_value_targets,
)

__all__ = [
    "Figures",
    "Reduction",
    "adaptive_entropy_weights",
    "correction_weights",
    "covariance_band",
    "covariance_penalties",
    "covariances",
    "head_logprobs",
    "mismatch_figures",
    "outcome_loss",
    "pair_loss",
    "policy_loss",
    "rank_pairs",
    "response_score",
    "score_divisor",
    "soft_value_targets",
    "token_logprobs",
]
