"""From the characters where a text is cut to the tokens of its steps, and the check that steps tile the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from operator import index
from typing import Any

import numpy as np

from capo_ray.arrays import IntArray
from capo_ray.config.steps import DEFAULT_STEPS, StepsBase
from capo_ray.steps.thinking import answer_start
from capo_ray.types import Completion, Span, VersionRun

Cut = Callable[[Completion, Any], list[int]]


class SpanError(ValueError):
    """The tokens of a response and its text (or its steps) do not fit together."""


class TextAlone(SpanError):
    """The segmenter reads more of a response than its text, and there is nothing else."""


@cache
def _rule_of(kind: type[StepsBase]) -> Cut:
    return kind.find_rule()


def split_steps(response: Completion, steps: StepsBase = DEFAULT_STEPS) -> tuple[Span, ...]:
    """The steps of a response: K token spans that tile [0, T), none empty (K >= 1 where T >= 1).

    Each lies in one turn and holds a sampled token; what the policy read belongs to the step before it. Raises
    `SpanError` where `char_ends` do not describe `text` or its ends do not tile; `RuleError` where the segmenter fails.
    """
    check_char_ends(response)
    rule = _rule_of(type(steps))
    with steps.blamed(SpanError):
        ends = list(map(index, rule(response, steps)))
        spans = tuple(pairwise([0, *(_within_turns(ends, response) if response.acted else ends)]))
    check_spans(spans, len(response.token_ids))
    return spans


def _within_turns(ends: Sequence[int], response: Completion) -> list[int]:
    """The ends, those of turns beside them, without any that would leave a step nothing that was sampled."""
    before = np.concatenate(([0], np.cumsum(response.sampled()))).tolist()
    kept: list[int] = []
    for end in sorted({*ends, *(start for start, _ in response.acted[1:])}):
        if before[end] > before[kept[-1] if kept else 0]:
            kept.append(end)
        elif kept:
            kept[-1] = end
    return kept


def split_text(text: str, steps: StepsBase = DEFAULT_STEPS) -> tuple[str, ...]:
    """The steps of a text without tokens: each character stands for one, so that it is cut as in training.

    Raises `TextAlone` where the segmenter reads more than text.
    """
    if more := sorted(steps.reads - {"text"}):
        raise TextAlone(
            f"steps.segmenter={steps.segmenter} reads the {', '.join(more)} of a response, which a text alone has not; "
            "add steps=sentence, or give the steps themselves"
        )
    if steps.thinking == "leave_out":
        text = text[answer_start(text) :]
    count = len(text)
    runs = (VersionRun(0, count),) if count else ()
    letters = Completion(np.arange(count), np.zeros(count), np.arange(1, count + 1), text, runs, "stop")
    return tuple(text[start:end] for start, end in split_steps(letters, steps))


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
