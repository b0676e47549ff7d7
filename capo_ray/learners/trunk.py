"""The layers of a transformers model over a microbatch, and whether they can run over segments in place of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from capo_ray.learners import attention
from capo_ray.learners.microbatch import Inputs, shared_inputs, to_inputs
from capo_ray.learners.sequence import SequenceGroup, Stretch
from capo_ray.protocols import RunFailed
from capo_ray.sizing import KNOWN_LAYERS


def hidden_states(trunk: Any, inputs: Inputs, sequence: SequenceGroup | None = None) -> torch.Tensor:
    """The last hidden states [B * W, h], or [w, h] of this rank's stretch where ranks share the row.

    Padding stands on the right and attention is causal, so no real token sees it: padded rows need no mask.
    """
    ids, where = inputs.input_ids, dict[str, object]()
    if inputs.segments is not None and sequence is not None:
        where = {
            "position_ids": sequence.stretch(inputs.segments.position_ids),
            "stretch": Stretch(inputs.segments, sequence, ids.shape[1]),
        }
        ids = sequence.stretch(ids)
    elif inputs.segments is not None:
        where = {"position_ids": inputs.segments.position_ids, "segments": inputs.segments}
    hidden: torch.Tensor = trunk(input_ids=ids, use_cache=False, **where).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])


@torch.no_grad()
def share_prompts(model: Any, path: str) -> None:
    """Sets a model's attention so that it takes segments; RunFailed where its layers would not give the same numbers.

    A layer that mixes tokens otherwise (a convolution, a recurrence, chunks, caps, sinks) cannot be told of segments.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if getattr(config, "attention_chunk_size", None):
        kinds.add("attention_chunk_size")
    if not getattr(model, "_supports_attention_backend", False):
        kinds.add("attention of its own")
    if kinds:
        raise _refused(path, f"has {', '.join(sorted(kinds))}")
    attention.register()
    own = config._attn_implementation
    try:
        apart = _apart(model, own)
        if apart > SAME and next(model.parameters()).dtype != torch.float32:
            with _in_float32(model.base_model):
                apart = _apart(model, own)
    except NotImplementedError as error:
        raise _refused(path, f"cannot: {error}") from error
    if not apart <= SAME:
        raise _refused(path, f"gives other numbers (by {apart:.2g} of the largest)")


SAME = 1e-3
"""How far apart the same numbers may lie in float32, as a share of the largest. In bf16 no share would do: behind a few
huge activations, as SmolLM2 has them, its rounding is larger than the difference between one sequence and another."""


def _apart(model: Any, own: str) -> float:
    """The largest difference that it makes to see rows as segments, and not by the attention `own`; leaves segments."""
    device = next(model.parameters()).device
    rows = [[1, 2, 1], [1, 2, 2], [2, 1]]
    model.set_attn_implementation(own)
    alone = [hidden_states(model.base_model, to_inputs([row], [1], device))[: len(row)] for row in rows]
    model.set_attn_implementation(attention.NAME)
    inputs = shared_inputs(rows, [((start, 3),) for start in (2, 2)] + [((1, 2),)], device)
    found = hidden_states(model.base_model, inputs)[[1, 2, 3, 5]].float()
    expected = torch.stack([alone[0][1], alone[0][2], alone[1][2], alone[2][1]]).float()
    return float((expected - found).abs().max() / expected.abs().max())


@contextmanager
def _in_float32(trunk: nn.Module) -> Iterator[None]:
    """The layers compute in float32 for a while, for which one module's weights at a time are widened."""
    kept: dict[nn.Parameter, torch.Tensor] = {}

    def widen(module: nn.Module, *_: object) -> None:
        for param in module.parameters(recurse=False):
            kept[param] = param.data
            param.data = param.data.float()

    def restore(module: nn.Module, *_: object) -> None:
        for param in module.parameters(recurse=False):
            param.data = kept.pop(param)

    handles = []
    for module in trunk.modules():
        if isinstance(module, nn.Embedding):  # a table may be as large as the layers together
            handles.append(module.register_forward_hook(lambda module, args, rows: rows.float()))
        else:
            handles += [module.register_forward_pre_hook(widen), module.register_forward_hook(restore)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for param, data in kept.items():  # where a forward pass did not end
            param.data = data


def _refused(path: str, why: str) -> RunFailed:
    return RunFailed(
        f"learner.packing=shared computes a prompt once for all its responses, which needs layers of plain causal "
        f"attention, as in Qwen, Llama or Mistral; {path!r} {why}; set learner.packing=padded"
    )
