"""A language model's trunk with one number per position in place of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from capo_ray.learners.microbatch import Inputs
from capo_ray.learners.policy import load_policy

HEAD_STD = 1e-3
"""Of the new head's weights (our choice): values begin near 0, yet are not all equal."""


class ScalarModel(nn.Module):
    """`forward` returns a scalar at each response token, or at the prefix before it."""

    def __init__(self, trunk: Any, at_token: bool, seed: int) -> None:
        super().__init__()
        self.trunk = trunk
        self._shift = 1 if at_token else 0
        dtype = next(trunk.parameters()).dtype
        # A loss of differences has no gradient by a bias but rounding, which Adam would make moves of.
        self.head = nn.Linear(trunk.config.hidden_size, 1, bias=not at_token, dtype=dtype)
        with torch.no_grad():  # the same on every rank
            generator = torch.Generator().manual_seed(seed)
            self.head.weight.copy_(HEAD_STD * torch.randn(self.head.weight.shape, generator=generator))
            if self.head.bias is not None:
                self.head.bias.zero_()

    def forward(self, inputs: Inputs, temperature: float) -> tuple[torch.Tensor, ...]:
        """(values [N],) in fp32; the temperature has no part in them."""
        hidden = self.trunk(input_ids=inputs.input_ids, use_cache=False).last_hidden_state
        needed = hidden.reshape(-1, hidden.shape[-1]).index_select(0, inputs.predictors + self._shift)
        return (self.head(needed).squeeze(-1).float(),)


def load_scalar_model(
    path: str, dtype: str, *, at_token: bool, seed: int, gradient_checkpointing: bool = False
) -> ScalarModel:
    """The trunk of the model at `path` under a new head, on the CPU, dropout off."""
    policy = load_policy(path, dtype, gradient_checkpointing=gradient_checkpointing)
    return ScalarModel(policy.model.base_model, at_token, seed)
