"""Steps: cuts a response into the token spans that credit is given to.

    text       "7*8=56" "\\n\\n" "56+5=61" <end>
    tokens      |  |  |    |       |          |       spans tile [0, T): nothing lost, nothing twice, none empty
    steps      [   step 0    ) [   step 1       )

A token belongs to the step that holds the first character it contributes, so a delimiter belongs to the step it closes
and a token that reaches over a delimiter stays where it starts. A token without a character of its own belongs with the
next character (the first bytes of a multi-byte one), or to the last step where none follows (end-of-sequence).

Invariant: a response whose tokens and text disagree raises `SpanError`; it is never trimmed or re-encoded to fit.
"""

from capo_ray.steps.segmenters import cut_at_blank_lines, cut_at_newlines, cut_at_sentences, step_ends, text_ends
from capo_ray.steps.spans import SpanError, TextAlone, check_spans, split_steps, split_text
from capo_ray.steps.thinking import without_thinking

__all__ = [
    "SpanError",
    "TextAlone",
    "check_spans",
    "cut_at_blank_lines",
    "cut_at_newlines",
    "cut_at_sentences",
    "split_steps",
    "split_text",
    "step_ends",
    "text_ends",
    "without_thinking",
]
