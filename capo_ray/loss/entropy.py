"""LICA's adaptive entropy term (2007.02529): the less entropy is left, the larger its bonus. All tensors are [N]."""

from __future__ import annotations

import torch

from capo_ray.loss.policy import sequence_means

LOWEST_NATS = 1e-3  # below it the bonus grows no further, so that a response without any choice cannot blow up


def adaptive_entropy_weights(
    entropy_weights: torch.Tensor, entropies: torch.Tensor, sequences: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """(xi / sg[H]) [N] for xi = `entropy_weights`, H being the mean entropy of its response's `counted` tokens.

    The paper divides the entropy of each agent's policy by itself. A token in place of an agent would push every token
    that leaves no choice as hard as one that does, hence the mean over the response (our choice). It needs no other
    response, so that the cut into microbatches changes nothing.
    """
    return entropy_weights / sequence_means(entropies.detach(), sequences, counted).clamp(min=LOWEST_NATS)
