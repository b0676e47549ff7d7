"""What in a `config.json` keeps a model from being trained here, told without loading it.

A learner's head is a matrix times the last hidden state; shared prompts need layers of plain causal attention.
Who loads a model compares numbers and has the last word; these are the causes that have a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers (`layer_types`) in which tokens meet by plain causal attention alone."""
_HEAD = {  # the value with which each changes nothing
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}
_LAYERS = ("attn_logit_softcapping", "attention_chunk_size")
_RECURRENT = ("mamba_d_state", "ssm_state_size", "state_size", "conv_L_cache", "block_types", "attn_layer_period")
_SINKS = ("gpt_oss",)  # model types whose attention has a learnt sink


def odd_head(config: Mapping[str, Any]) -> str:
    """What scales or caps the logits, as `final_logit_softcapping=30.0`; empty where nothing does."""
    text = _text(config)
    return ", ".join(f"{key}={text[key]}" for key, plain in _HEAD.items() if text.get(key, plain) not in (plain, None))


def odd_layers(config: Mapping[str, Any]) -> str:
    """What a layer has that is not plain causal attention; empty where nothing is known."""
    text = _text(config)
    kinds = sorted(set(text.get("layer_types") or ()) - KNOWN_LAYERS)
    found = [f"{key}={text[key]}" for key in _LAYERS if text.get(key)]
    recurrent = [f"{key}, of a recurrence" for key in _RECURRENT if text.get(key) is not None]
    sinks = ["attention sinks"] if text.get("model_type") in _SINKS else []
    return ", ".join([*kinds, *found, *recurrent, *sinks])


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")  # of models with more than text
    return nested if isinstance(nested, Mapping) else config
