"""The attention that transformers' layers are given: over a row of segments, or over padded rows as they are used to.

CPU                            one call of the flash kernel for all segments of about one length, in any dtype
CUDA, bf16 or fp16             two calls a layer by cumulative lengths (varlen flash attention)
CUDA, fp32; sliding windows    one call a segment, with a mask

Where ranks share the row (`sequence`), each attends with some of the heads to all of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from capo_ray.learners.flash import attend_segments, can_attend
from capo_ray.learners.segments import Segments
from capo_ray.learners.sequence import Stretch

NAME = "capo_segments"  # of the attention in transformers' table
UNKNOWN = ("softcap", "s_aux", "position_bias")  # what a model may ask of attention and this one does not do


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    stretch: Stretch | None = None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """(output [1, W, H, D], None) of query [1, H, W, D]; without `segments` plain causal attention over padded rows.

    With `stretch` in their place the tokens are this rank's w of the W.
    """
    told = [name for name in UNKNOWN if asked.get(name) is not None]
    if told:
        raise NotImplementedError(f"attention over segments does not know {told[0]}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if stretch is not None:
        q, k, v = (stretch.sequence.to_heads(x, stretch.length) for x in (query, key, value))
        output, _ = attend(module, q, k, v, None, scale, sliding_window, stretch.segments)
        return stretch.sequence.to_tokens(output), None
    if segments is None:
        return _plain(query, key, value, scale, sliding_window), None
    windowed = sliding_window is not None and segments.longest > sliding_window
    if windowed or not can_attend(query):
        return _masked(query, key, value, segments, scale, sliding_window if windowed else None), None
    return attend_segments(query, key, value, segments, scale).transpose(1, 2), None


def register() -> None:
    """Makes `attend` known to transformers, without a mask of its own: none is made for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def _masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float, window: int | None
) -> torch.Tensor:
    """As `attend`, one masked call a segment: exact also where a window leaves out the oldest keys."""
    outputs = []
    for start, end in segments.own:
        first, last = segments.keys_of(start)
        k, v = (torch.cat([x[:, :, first:last], x[:, :, start:end]], 2) for x in (key, value))
        mask = _causal(end - start, last - first + end - start, window, query.device)
        outputs.append(
            scaled_dot_product_attention(query[:, :, start:end], k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        )
    return torch.cat(outputs, 2).transpose(1, 2)


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    rows, keys = query.shape[2], key.shape[2]
    narrow = window is not None and keys > window
    mask = _causal(rows, keys, window, query.device) if narrow or 1 < rows < keys else None
    output = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None and rows > 1, scale=scale, enable_gqa=True
    )
    return output.transpose(1, 2)


def _causal(rows: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[rows, keys]: which keys the last `rows` of so many positions see."""
    age = torch.arange(keys - rows, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    return (age >= 0) if window is None else (age >= 0) & (age < window)
