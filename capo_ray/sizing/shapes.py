"""The shape of a decoder-only transformer (the Llama family's blocks), from its `config.json` or by its hub name.

h hidden   i inner width of the MLP   q, kv widths of queries and of keys (= values)   V vocabulary
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KNOWN_FILE = Path(__file__).with_name("known.json")
BIASED = ("qwen2",)  # model types whose queries, keys and values have a bias without saying so
NORMED = ("qwen3",)  # model types that normalise each head's queries and keys


VOCAB_GRAIN = 64
"""vLLM pads vocabularies to multiples of it before it deals them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and counts of a model; `tied`: embedding and head are one tensor."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    positions: int | None = None

    def unshared(self, processes: int) -> str:
        """What of the model so many processes of an engine could not share, as vLLM deals it; empty where they can."""
        padded = -(-self.vocab // VOCAB_GRAIN) * VOCAB_GRAIN
        if self.heads % processes and self.heads > 1:  # 1 where a config names none
            return f"{self.heads} attention heads"
        if max(self.kv_heads, processes) % min(self.kv_heads, processes):
            return f"{self.kv_heads} heads of keys and values"
        if self.inner % processes:
            return f"the {self.inner} columns of its inner layers"
        return f"its vocabulary of {padded}" if padded % processes else ""

    @property
    def q(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all keys of a token."""
        return self.kv_heads * self.head_dim

    @property
    def num_params(self) -> int:
        """Parameters, tied ones once."""
        h = self.hidden
        layer = 2 * h * self.q + 2 * h * self.kv + 3 * h * self.inner + 2 * h
        layer += (self.q + 2 * self.kv if self.qkv_bias else 0) + (2 * self.head_dim if self.qk_norm else 0)
        return self.vocab * h * (1 if self.tied else 2) + self.layers * layer + h


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape in a `config.json`; None where it has experts or lacks what a transformer has."""
    nested = config.get("text_config")  # of models with more than text
    text: Mapping[str, Any] = nested if isinstance(nested, Mapping) else config
    numbers = [text.get(name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")]
    if any(not isinstance(n, int) or n < 1 for n in numbers):
        return None
    if any(text.get(name) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    hidden, layers, vocab = (int(n) for n in numbers if n is not None)
    heads = int(text.get("num_attention_heads") or 1)
    kind = str(text.get("model_type", ""))
    return Shape(
        hidden=hidden,
        inner=int(text.get("intermediate_size") or 4 * hidden),
        layers=layers,
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        vocab=vocab,
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        qkv_bias=bool(text.get("attention_bias", kind in BIASED)),
        qk_norm=kind in NORMED,
        positions=text.get("max_position_embeddings"),
    )


def known_shape(name: str) -> Shape | None:
    """The shape of a well-known hub name, from the table shipped with the package; None for any other."""
    for family in _known():
        entry = family["models"].get(name.removeprefix(family["prefix"])) if name.startswith(family["prefix"]) else None
        if entry is not None:
            return shape_of({**family["config"], **entry})
    return None


@functools.cache
def _known() -> list[dict[str, Any]]:
    families: list[dict[str, Any]] = json.loads(KNOWN_FILE.read_text(encoding="utf-8"))["families"]
    for family in families:
        spelt: dict[str, Any] = {}
        for size, entry in family["models"].items():
            for name in family.get("names", ["{}"]):
                spelt[name.format(size)] = entry
        family["models"] = spelt
    return families


def unshared_heads(heads: tuple[int, int], ranks: int) -> str:
    """Which heads (of queries; of keys and values) so many ranks of one row could not share; empty where they can."""
    queries, keys = heads
    if queries % ranks:
        return f"{queries} attention heads"
    return f"{keys} heads of keys and values" if keys % ranks and ranks % keys else ""
