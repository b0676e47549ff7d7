"""What the configs of all credit methods share."""

from __future__ import annotations

from typing import ClassVar, Literal

from capo_ray.config.base import Section

Needs = Literal["critiques", "answer_logprobs", "step_values", "token_rewards", "entropies", "overall"]
Vote = Literal["intersection", "majority", "union", "average", "greedy"]
Segmenter = Literal["blank_line", "newline", "sentence", "entropy"]


class CreditBase(Section):
    """What all credit methods share."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Kinds of evidence that the method reads, beside the verdict."""
    source: ClassVar[str] = ""
    """arXiv id of the paper that defines the method."""
    required_loss: ClassVar[dict[str, str]] = {}
    """Keys of the loss section without which the method is another one."""
    method: str
    segmenter: Segmenter = "blank_line"
    """Where a response is cut into steps."""
