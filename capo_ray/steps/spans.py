"""From character positions to token spans, by the rollout's own incremental detokenisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from capo_ray.arrays import FloatArray, IntArray
from capo_ray.config.credit.base import EntropyCuts
from capo_ray.steps.entropy import keep_decisions
from capo_ray.steps.segmenters import SEGMENTERS, step_ends
from capo_ray.types import Completion, Span

DEFAULT_CUTS = EntropyCuts()
ENTROPY = "entropy"  # the one segmenter that reads more than the text


class SpanError(ValueError):
    """The tokens of a response and its text (or its steps) do not fit together."""


def split_steps(
    response: Completion,
    segmenter: str = "blank_line",
    entropies: Sequence[float] | FloatArray = (),
    cuts: EntropyCuts = DEFAULT_CUTS,
    *,
    whole_blocks: bool = True,
) -> tuple[Span, ...]:
    """The steps of a response: K token spans that tile [0, T), none empty (K >= 1 where T >= 1).

    `entropy` cuts at those ends of sentences and lines after which the policy decides; without `entropies` [T] it goes
    by the surprisal of the sampled tokens. `whole_blocks` as in `step_ends`. Raises `SpanError` where `char_ends` do
    not describe `text`, `ValueError` on an unknown segmenter.
    """
    if segmenter != ENTROPY and segmenter not in SEGMENTERS:
        raise ValueError(f"unknown segmenter {segmenter!r}; known: {', '.join(sorted([*SEGMENTERS, ENTROPY]))}")
    check_char_ends(response)
    rule = "sentence" if segmenter == ENTROPY else segmenter
    char_cuts = step_ends(response.text, rule, whole_blocks=whole_blocks)
    ends = token_cuts(response.text, response.char_ends, char_cuts)
    if segmenter == ENTROPY and ends:
        # Python numbers: they are compared one by one.
        heights = np.asarray(entropies if len(entropies) else -response.logprobs, np.float64).tolist()
        if len(heights) != ends[-1]:
            raise SpanError(f"expected one entropy for each of the {ends[-1]} tokens, got {len(heights)}")
        ends = keep_decisions(ends, heights, cuts)
    spans = tuple(pairwise([0, *ends]))
    check_spans(spans, len(response.token_ids))
    return spans


def check_char_ends(response: Completion) -> None:
    """Raise `SpanError` unless `char_ends` has one non-decreasing entry per token and ends with the text."""
    ends, num_tokens = response.char_ends, len(response.token_ids)
    if len(ends) != num_tokens:
        raise SpanError(f"expected one char_end for each of the {num_tokens} tokens, got {len(ends)}")
    falls = np.flatnonzero(ends[1:] < ends[:-1])
    if len(falls):
        t = int(falls[0]) + 1
        raise SpanError(f"char_ends must not decrease: token {t} ends at {ends[t]}, the one before at {ends[t - 1]}")
    if num_tokens and ends[0] < 0:
        raise SpanError(f"char_ends must be >= 0, got {ends[0]}")
    last = ends[-1] if num_tokens else 0
    if last != len(response.text):
        raise SpanError(f"the tokens contribute {last} characters but the text has {len(response.text)}")


def token_cuts(text: str, char_ends: IntArray, cuts: Sequence[int]) -> list[int]:
    """The token index at which each step ends, T last.

    A piece of text in which no token starts makes no step, nor does one whose own tokens hold whitespace alone (a token
    over the delimiter before it took its words): those join the step before.
    """
    num_tokens, last_word = len(char_ends), len(text.rstrip())
    ends: list[int] = []
    # A step ends before the first token that starts at or after the cut; token t starts where t - 1 ended.
    for end in (np.searchsorted(char_ends, cuts) + 1).tolist():
        # Tokens that are left without a word (end-of-sequence) make no step: it would have no text to judge.
        if char_ends[end - 1] >= last_word:
            break
        if ends and end <= ends[-1]:
            continue
        if ends and not text[char_ends[ends[-1] - 1] : char_ends[end - 1]].strip():
            ends.pop()
        ends.append(end)
    if num_tokens:
        ends.append(num_tokens)
    return ends


def check_spans(spans: Sequence[Span], num_tokens: int) -> None:
    """Raise `SpanError` unless the spans tile [0, num_tokens) in order, none of them empty."""
    position = 0
    for start, end in spans:
        if start != position or end <= start:
            raise SpanError(f"steps must tile [0, {num_tokens}) in order and none be empty, got {tuple(spans)}")
        position = end
    if position != num_tokens:
        raise SpanError(f"steps must tile [0, {num_tokens}), but they end at {position}")
