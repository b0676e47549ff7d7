"""Where a text may be cut into steps: positions of characters, and the token ends of the steps that they make.

Lines end with `\\n`, `\\r\\n`, `\\r`, U+2028 or U+2029. Every pattern is linear in the text: no two of its repetitions
can match the same characters at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from capo_ray.config.steps import StepsBase
from capo_ray.steps.blocks import block_spans, drop_inner, join_items
from capo_ray.steps.marks import drop_blank_pieces, join_marks
from capo_ray.steps.quotes import block_end
from capo_ray.steps.spans import token_cuts
from capo_ray.types import Completion

_BREAK = r"(?:\r\n?+|[\n\u2028\u2029])"
# A greedy run of whitespace backtracks to its own last line end at most once, so the scan stays linear.
_BLANK_LINE = re.compile(rf"{_BREAK}\s*{_BREAK}")
_NEWLINE = re.compile(rf"{_BREAK}(?:\s*{_BREAK})?")
_SENTENCE = re.compile(rf"[.!?](?:[\"')\]}}*_$]|\\[)\]]){{0,4}}\s+|[。！？]|{_BREAK}(?:\s*{_BREAK})?")
_LIST_NUMBER = re.compile(r"\s*\d{1,3}[.)]?\s*")
_BREAKS = frozenset("\n\r\u2028\u2029")
_CLOSED_MARKS = frozenset("}*_$\\")
_LAST_WORD = re.compile(r"(?:^|[\s(\[\"'*$])((?:[A-Za-z]\.)*[A-Za-z]+)$")
TITLES = frozenset({"Dr", "Mr", "Mrs", "Ms", "Prof", "St", "Jr"})
ABBREVIATIONS = frozenset({"eq", "eqs", "fig", "figs", "vs", "cf", "approx", "resp", "al", "viz"})
NUMBERED = frozenset({"no", "nos", "sec", "ch", "p", "pp", "vol", "ex", "def", "prop", "lem", "cor", "thm"})
"""Abbreviations where a number follows; elsewhere words and units."""


def blank_lines(response: Completion, steps: StepsBase) -> list[int]:
    """The rule of steps=blank_line."""
    return text_ends(response, cut_at_blank_lines(response.text), steps)


def newlines(response: Completion, steps: StepsBase) -> list[int]:
    """The rule of steps=newline."""
    return text_ends(response, cut_at_newlines(response.text), steps)


def sentences(response: Completion, steps: StepsBase) -> list[int]:
    """The rule of steps=sentence."""
    return text_ends(response, cut_at_sentences(response.text), steps)


def turns(response: Completion, steps: StepsBase) -> list[int]:
    """The rule of steps=turn: a turn ends where the next begins, so what the policy read after it is part of it."""
    spans = response.turns
    return [*(start for start, _ in spans[1:]), len(response.token_ids)] if spans else []


def evidence(response: Completion, steps: StepsBase) -> list[int]:
    """The rule of steps=evidence; a text without the block is cut at blank lines alone."""
    head, text = block_end(response.text), response.text
    rest = step_ends(text[head:], cut_at_blank_lines(text[head:]), whole_blocks=steps.whole_blocks)
    cuts = [*([head] if head else []), *(head + end for end in rest)]
    return token_cuts(text, response.char_ends, cuts)


def text_ends(response: Completion, cuts: Sequence[int], steps: StepsBase) -> list[int]:
    """The token ends of the steps that end at these positions of the text, T last; `whole_blocks` as in `step_ends`."""
    ends = step_ends(response.text, cuts, whole_blocks=steps.whole_blocks)
    return token_cuts(response.text, response.char_ends, ends)


def cut_at_blank_lines(text: str) -> list[int]:
    """The ends of blank lines: two line ends or more with only whitespace between (2508.02298 cuts at `\\n\\n`)."""
    return [match.end() for match in _BLANK_LINE.finditer(text)]


def cut_at_newlines(text: str) -> list[int]:
    """The ends of lines, blank ones joined to the line they close."""
    return [match.end() for match in _NEWLINE.finditer(text)]


def cut_at_sentences(text: str) -> list[int]:
    """The ends of sentences and lines. `3.14` is not cut, nor `Fig. 3`, nor a list item's number from what it numbers.

    The last space between two sentences goes with the second: tokenizers make one token of it and the word after it.
    """
    cuts: list[int] = []
    start = 0
    for match in _SENTENCE.finditer(text):
        ended = match[0]
        # Only a short piece can be a list number; slicing every long one again would cost quadratic time.
        short = match.end() - start <= 8 and _BREAKS.isdisjoint(ended)
        if short and _LIST_NUMBER.fullmatch(text[start : match.end()]):
            continue
        if ended[0] in ".!?" and _BREAKS.isdisjoint(ended) and _goes_on(text, match.start(), match.end(), ended):
            continue
        start = match.end() - ended.endswith(" ")
        cuts.append(start)
    return cuts


def _goes_on(text: str, stop: int, after: int, ended: str) -> bool:
    """Whether a sentence goes on behind a stop: it closes an abbreviation, or a formula before a small letter."""
    following = text[after : after + 1]
    if not _CLOSED_MARKS.isdisjoint(ended):
        return following.islower()
    word = _LAST_WORD.search(text[max(0, stop - 16) : stop]) if ended.startswith(". ") else None
    if word is None:
        return False
    name = word[1]
    if "." in name or name in TITLES or name.lower() in ABBREVIATIONS:
        return True
    return (name.lower() in NUMBERED and following.isdecimal()) or (name == "etc" and following.islower())


def step_ends(text: str, cuts: Sequence[int], *, whole_blocks: bool = True) -> list[int]:
    """Those of the cuts at which a step of the text ends, the last one's end left out; no step is white space alone.

    `whole_blocks`: code blocks, displayed formulas, tables and the paragraphs of a list item stay whole, and a heading
    or a rule is no step of its own. Without it the plain cuts.
    """
    if not whole_blocks:
        return drop_blank_pieces(text, cuts)
    return join_marks(text, drop_blank_pieces(text, join_items(text, drop_inner(cuts, block_spans(text)))))
