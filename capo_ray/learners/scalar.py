"""A language model's trunk with one number per position in place of the vocabulary.

A token classifier with one label is such a model already: its head is taken with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from capo_ray.imports import imported_for_good
from capo_ray.learners.microbatch import Inputs
from capo_ray.learners.policy import load_policy
from capo_ray.learners.pretrained import load_pretrained
from capo_ray.learners.trunk import hidden_states, share_prompts
from capo_ray.protocols import RunFailed

HEAD_STD = 1e-3
"""Of the new head's weights (our choice): values begin near 0, yet are not all equal."""


class ScalarModel(nn.Module):
    """`forward` returns a scalar at each response token, or at the prefix before it."""

    def __init__(self, trunk: Any, head: nn.Linear, at_token: bool) -> None:
        super().__init__()
        self.trunk, self.head, self._at_token = trunk, head, at_token

    def forward(self, inputs: Inputs, temperature: float) -> tuple[torch.Tensor, ...]:
        """(values [N],) in fp32; the temperature has no part in them."""
        at = inputs.places if self._at_token else inputs.predictors
        needed = hidden_states(self.trunk, inputs).index_select(0, at)
        return (self.head(needed).squeeze(-1).float(),)


def load_scalar_model(
    path: str,
    dtype: str,
    *,
    at_token: bool,
    seed: int,
    gradient_checkpointing: bool = False,
    cast: bool = True,
    shared: bool = False,
) -> ScalarModel:
    """The token classifier at `path`, or the language model's trunk there under a new head, as `load_pretrained`'s."""
    with imported_for_good():
        from transformers import AutoModelForTokenClassification

    options = {"gradient_checkpointing": gradient_checkpointing, "cast": cast}
    if not _is_token_classifier(path):
        trunk = load_policy(path, dtype, shared=shared, **options).model.base_model
        return ScalarModel(trunk, _new_head(trunk, at_token, seed), at_token)
    what = "reward_model.path must be a token classifier with one label, in a linear layer called score,"
    kind: Any = AutoModelForTokenClassification
    model = load_pretrained(kind, what, path, dtype, **options)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise RunFailed(f"{what} or a language model (got {head} in {path!r})")
    if at_token and head.bias is not None:
        head.bias.requires_grad_(False)
    if shared:
        share_prompts(model, path)
    return ScalarModel(model.base_model, head, at_token)


def _is_token_classifier(path: str) -> bool:
    from transformers import AutoConfig

    try:
        names = AutoConfig.from_pretrained(path).architectures or ()
    except (OSError, ValueError):
        return False  # read again as a language model, which says what is wrong
    return any(name.endswith("ForTokenClassification") for name in names)


def _new_head(trunk: Any, at_token: bool, seed: int) -> nn.Linear:
    # A loss of differences has no gradient by a bias but rounding, which Adam would make moves of.
    head = nn.Linear(trunk.config.hidden_size, 1, bias=not at_token, dtype=next(trunk.parameters()).dtype)
    with torch.no_grad():  # the same on every rank
        generator = torch.Generator().manual_seed(seed)
        head.weight.copy_(HEAD_STD * torch.randn(head.weight.shape, generator=generator))
        if head.bias is not None:
            head.bias.zero_()
    return head
