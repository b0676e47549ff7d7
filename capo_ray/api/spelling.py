"""Tokens as the texts that they contribute, which `capo_ray.credit` reads beside a response's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from capo_ray.protocols import RunFailed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def spell(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """[T]: the piece of text that each token adds, so that they join to the decoded response.

    A token that completes no character adds "", as do special tokens: `tokenizer.decode([id])` of each would not join
    to the text. `tokenizer` is a fast one of transformers, as TRL and verl hold it.
    """
    from capo_ray.engines import HfTokenizer, TokenizerRefused

    try:
        text, ends = HfTokenizer.of(tokenizer).decode_pieces([int(i) for i in token_ids])
    except TokenizerRefused as error:
        raise RunFailed(str(error)) from None
    return [text[start:end] for start, end in zip((0, *ends), ends, strict=False)]
