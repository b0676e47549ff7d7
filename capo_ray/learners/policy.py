"""The policy as a module whose forward pass yields logprobs, not logits: the head sees response positions alone."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from capo_ray.imports import imported_for_good
from capo_ray.learners.microbatch import Inputs, to_inputs
from capo_ray.learners.pretrained import load_pretrained
from capo_ray.learners.sequence import SequenceGroup
from capo_ray.learners.trunk import hidden_states, share_prompts
from capo_ray.loss import head_logprobs
from capo_ray.protocols import RunFailed


class Policy(nn.Module):
    """A causal language model; `forward` returns the logprobs and entropies of response tokens."""

    sequence: SequenceGroup | None = None
    """The ranks that compute a row of segments together with this one, once they have met."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()
        # As a method of the head, so that whoever makes its weights whole for a pass of the module does so here too.
        head.forward = functools.partial(_score, head)

    def forward(self, inputs: Inputs, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(logprobs [N], entropies [N]) in nats at `temperature`, fp32."""
        if self.sequence is not None and inputs.segments is not None:
            return self._forward_shared(self.sequence, inputs, temperature)
        needed = hidden_states(self.model.base_model, inputs).index_select(0, inputs.predictors)  # the rest is let go
        return self._score(needed, inputs.targets, temperature)

    def _forward_shared(
        self, sequence: SequenceGroup, inputs: Inputs, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index, predictors = sequence.own(inputs.predictors, inputs.input_ids.shape[1])
        targets = inputs.targets[index]
        if not len(index):  # something is scored by every rank, or its backward pass would leave the others waiting
            predictors = targets = predictors.new_zeros(1)
        needed = hidden_states(self.model.base_model, inputs, sequence).index_select(0, predictors)
        scored = torch.stack(self._score(needed, targets, temperature))
        logprobs, entropies = sequence.together(scored, index, len(inputs.targets))
        return logprobs.clone(), entropies.clone()  # FSDP2 hangs its gathering for the backward pass on what comes out

    def _score(
        self, needed: torch.Tensor, targets: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = self.model.get_output_embeddings()
        scored: tuple[torch.Tensor, torch.Tensor] = head(needed, targets, temperature)
        return scored


def _score(
    head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor | None = None, temperature: float = 1.0
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The logprobs and entropies of `targets`, or the logits where there are none, as transformers' own calls want."""
    if targets is None:
        return linear(hidden, head.weight, head.bias)
    return head_logprobs(hidden, head.weight, head.bias, targets, temperature)


def load_policy(
    path: str, dtype: str, *, gradient_checkpointing: bool = False, cast: bool = True, shared: bool = False
) -> Policy:
    """The policy at `path` (a directory or hub name) as `load_pretrained` gives it; RunFailed if it cannot be used.

    `shared`: it also takes inputs in segments.
    """
    with imported_for_good():
        from transformers import AutoModelForCausalLM

    what = "model.path must be a causal language model"
    options = {"gradient_checkpointing": gradient_checkpointing, "cast": cast}
    model = load_pretrained(AutoModelForCausalLM, what, path, dtype, **options)
    require_plain_head(model, path)
    if shared:
        share_prompts(model, path)
    return Policy(model)


@torch.no_grad()
def require_plain_head(model: Any, path: str) -> None:
    """Raises RunFailed for a model whose logits are not simply its head applied to its last hidden state."""
    inputs = to_inputs([[1, 2]], [1], torch.device("cpu"))
    logits = model(input_ids=inputs.input_ids, use_cache=False).logits
    hidden = model.base_model(input_ids=inputs.input_ids, use_cache=False).last_hidden_state
    # Weights may be the file's bfloat16 here, in which a product of another shape is rounded otherwise.
    slack = max(1e-3, 4 * torch.finfo(logits.dtype).eps)
    logits, ours = logits.float(), model.get_output_embeddings()(hidden).float()
    if not torch.allclose(logits, ours, rtol=slack, atol=slack):
        raise RunFailed(
            f"the learner needs a model whose logits are head(hidden), as in Qwen, Llama or Mistral; {path!r} "
            f"scales or caps them (largest difference {float((logits - ours).abs().max()):.3g})"
        )
