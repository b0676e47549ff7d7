"""Where a text may be cut into steps: each segmenter returns the character positions at which a step ends.

Every pattern is linear in the text: no two of its repetitions can match the same characters at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# A greedy run of whitespace backtracks to its own last newline at most once, so the scan stays linear.
_BLANK_LINE = re.compile(r"\n\s*\n")
_NEWLINE = re.compile(r"\n(?:\s*\n)?")
_SENTENCE = re.compile(r"[.!?][\"')\]]{0,3}\s+|[。！？]|\n(?:\s*\n)?")
_LIST_NUMBER = re.compile(r"\s*\d{1,3}[.)]?\s*")


def cut_at_blank_lines(text: str) -> list[int]:
    """The ends of blank lines: two newlines or more with only whitespace between (2508.02298 cuts at `\\n\\n`)."""
    return [match.end() for match in _BLANK_LINE.finditer(text)]


def cut_at_newlines(text: str) -> list[int]:
    """The ends of lines, blank ones joined to the line they close."""
    return [match.end() for match in _NEWLINE.finditer(text)]


def cut_at_sentences(text: str) -> list[int]:
    """The ends of sentences and lines. `3.14` is not cut, nor is the number of a list item from what it numbers.

    The last space between two sentences goes with the second: tokenizers make one token of it and the word after it.
    """
    cuts: list[int] = []
    start = 0
    for match in _SENTENCE.finditer(text):
        # Only a short piece can be a list number; slicing every long one again would cost quadratic time.
        if match.end() - start <= 8 and "\n" not in match[0] and _LIST_NUMBER.fullmatch(text[start : match.end()]):
            continue
        start = match.end() - match[0].endswith(" ")
        cuts.append(start)
    return cuts


SEGMENTERS: dict[str, Callable[[str], list[int]]] = {
    "blank_line": cut_at_blank_lines,
    "newline": cut_at_newlines,
    "sentence": cut_at_sentences,
}
