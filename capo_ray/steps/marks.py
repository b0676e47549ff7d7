"""Pieces of text that are no step of their own: white space, rules, headings."""

from __future__ import annotations

import re
from collections.abc import Sequence

_RULE = re.compile(r"\s*(?:-{3,}|\*{3,}|_{3,}|={3,}|(?:[-*_] ){2,}[-*_])\s*")
# `#### 42` is GSM8K's answer, and a heading with an equation says something that can be wrong.
_HEADING = re.compile(
    r"\s*(?:#{1,6}[ \t]+(?!(?<=#### )[-+$\\(]?\d)[^\n=]*|\*\*[^*\n=]+\*\*:?|(?:Step|STEP)[ \t]+\d{1,3}[.:]?)\s*"
)


def drop_blank_pieces(text: str, cuts: Sequence[int]) -> list[int]:
    """The cuts without those that would leave a piece of whitespace alone: it joins the piece before it."""
    kept: list[int] = []
    start = 0
    for cut in cuts:
        if text[start:cut].isspace():
            if kept:
                kept[-1] = cut
        else:
            kept.append(cut)
        start = cut
    if kept and not text[start:].strip():
        kept.pop()
    return kept


def join_marks(text: str, cuts: Sequence[int]) -> list[int]:
    """The cuts without those around a rule or heading alone: a rule joins what precedes it, a heading what follows."""
    kept: list[int] = []
    start = 0
    for cut in cuts:
        piece = text[start:cut]
        if _RULE.fullmatch(piece):
            if kept and kept[-1] == start:
                kept[-1] = cut
        elif not _HEADING.fullmatch(piece):
            kept.append(cut)
        start = cut
    if kept and kept[-1] == start and _RULE.fullmatch(text[start:]):
        kept.pop()
    return kept
