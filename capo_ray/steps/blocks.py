"""What is not cut in the middle: fenced code, displayed formulas, LaTeX environments, tables, items of a list.

A block that is opened and never closed is none: what follows a stray mark is cut as ever. One pass, whatever the text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from capo_ray.types import Span

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)
_TABLE = re.compile(r"(?:^[ \t]*\|[^\n]*(?:\n|\Z)){2,}", re.MULTILINE)
_MATH = re.compile(r"\\(?:\\|\$|(?P<mark>[\[\]])|(?P<end>begin|end)\{(?P<name>[a-zA-Z]{1,16})\*?\})|(?P<dollars>\$\$)")
ENVIRONMENTS = frozenset(
    [
        "align",
        "aligned",
        "alignat",
        "alignedat",
        "array",
        "asy",
        "bmatrix",
        "Bmatrix",
        "cases",
        "dcases",
        "displaymath",
        "enumerate",
        "eqnarray",
        "equation",
        "flalign",
        "gather",
        "gathered",
        "itemize",
        "lstlisting",
        "math",
        "matrix",
        "minted",
        "multline",
        "multlined",
        "pmatrix",
        "smallmatrix",
        "split",
        "subequations",
        "tabular",
        "tabularx",
        "tikzpicture",
        "verbatim",
        "vmatrix",
        "Vmatrix",
    ]
)
"""Those that show one thing; a `proof` or `document` holds steps."""
_MARKER = re.compile(r"(?:[-*+•]|\(?\d{1,3}[.)]|\(?[a-z][.)])[ \t]")
_LINE_HEAD = re.compile(r"^(?=\S)", re.MULTILINE)
_INDENTED = re.compile(r"\t| {2,}\S")


def block_spans(text: str) -> list[Span]:
    """The character spans of the blocks of a text, in order and apart."""
    fences = _fences(text) if "```" in text or "~~~" in text else []
    found = [*fences, *_displays(text, fences)] if "\\" in text or "$$" in text else fences
    if "|" in text:
        tables = ((m.start(), m.start() + len(m[0].rstrip())) for m in _TABLE.finditer(text))
        found = [*found, *tables]
    merged: list[Span] = []
    for start, end in sorted(found):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _fences(text: str) -> list[Span]:
    """A fence opens a block, the next bare one of its kind closes it."""
    spans: list[Span] = []
    opened: dict[str, int] = {}
    for match in _FENCE.finditer(text):
        kind, bare = match[1][0], not match[2].strip()
        if bare and opened:
            if kind in opened:
                spans.append((opened[kind], match.end()))
                opened.clear()
        elif not opened:
            opened[kind] = match.start()
    return spans


def _displays(text: str, fences: Sequence[Span]) -> list[Span]:
    """Pairs of `\\[`, `$$` and of environments outside of fences; an inner mark that is left open is passed over."""
    spans: list[Span] = []
    opened: list[tuple[str, int]] = []
    num_open: Counter[str] = Counter()
    starts = [start for start, _ in fences]
    for match in _MATH.finditer(text):
        place = bisect_right(starts, match.start()) - 1
        if place >= 0 and match.start() < fences[place][1]:
            continue
        kind, closes = _kind(match)
        if kind == "$$":
            closes = num_open[kind] > 0
        if not kind or (closes and not num_open[kind]):
            continue
        if not closes:
            opened.append((kind, match.start()))
            num_open[kind] += 1
            continue
        while opened:
            name, start = opened.pop()
            num_open[name] -= 1
            if name == kind:
                spans.append((start, match.end()))
                break
    return spans


def _kind(match: re.Match[str]) -> tuple[str, bool]:
    """What a mark opens or closes, and whether it closes; an empty kind for what is no mark."""
    if match["dollars"]:
        return "$$", False
    if match["mark"]:
        return "[", match["mark"] == "]"
    name = match["name"] or ""
    return (name if name in ENVIRONMENTS else ""), match["end"] == "end"


def drop_inner(cuts: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """The cuts that fall inside no span."""
    starts = [start for start, _ in spans]
    kept = []
    for cut in cuts:
        place = bisect_right(starts, cut - 1) - 1
        if place < 0 or cut >= spans[place][1]:
            kept.append(cut)
    return kept


def join_items(text: str, cuts: Sequence[int]) -> list[int]:
    """The cuts without those before an indented paragraph of a list item."""
    kept: list[int] = []
    start, in_item = 0, False
    for cut in cuts:
        heads = list(_LINE_HEAD.finditer(text, start, cut))
        if heads:
            in_item = _MARKER.match(text, heads[-1].start()) is not None
        if not (in_item and _INDENTED.match(text, cut)):
            kept.append(cut)
        start = cut
    return kept
