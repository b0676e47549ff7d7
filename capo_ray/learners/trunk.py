"""The layers of a transformers model over a microbatch, and whether they can run over segments in place of rows."""

from __future__ import annotations

from typing import Any

import torch

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
    device = next(model.parameters()).device
    rows = [[1, 2, 1], [1, 2, 2], [2, 1]]
    alone = [hidden_states(model.base_model, to_inputs([row], [1], device))[: len(row)] for row in rows]
    attention.register()
    model.set_attn_implementation(attention.NAME)
    inputs = shared_inputs(rows, [((start, 3),) for start in (2, 2)] + [((1, 2),)], device)
    try:
        shared = hidden_states(model.base_model, inputs)
    except NotImplementedError as error:
        raise _refused(path, f"cannot: {error}") from error
    expected = torch.stack([alone[0][1], alone[0][2], alone[1][2], alone[2][1]]).float()
    found = shared[[1, 2, 3, 5]].float()
    allowed = (1e-3 if shared.dtype == torch.float32 else 0.1) * float(expected.abs().max())
    if not float((expected - found).abs().max()) <= allowed:
        raise _refused(path, f"gives other numbers (largest difference {float((expected - found).abs().max()):.3g})")


def _refused(path: str, why: str) -> RunFailed:
    return RunFailed(
        f"learner.packing=shared computes a prompt once for all its responses, which needs layers of plain causal "
        f"attention, as in Qwen, Llama or Mistral; {path!r} {why}; set learner.packing=padded"
    )
