r"""Sets of real numbers in their notations: `(-\infty,3)`, `x<3`, `\{x|x<3\}`, `x\in(-\infty,3)` are the same one.

An inequality is read with one letter and constant ends. Two half-lines (`x<-1, x>1`) are a union, or, where they
overlap (`x>1 and x<3`), what they share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from capo_ray.answers.constants import value_of
from capo_ray.answers.parts import split_top

MAX_SPANS = 6

_BUILDER = re.compile(r"\\\{ ?([a-z])(?:\\in\\mathbb\{?R\}?)? ?[|:] ?(.*)\\\}", re.DOTALL)
_MEMBER = re.compile(r"([a-z]) ?\\in ?(?=[(\[\\])")
_LESS = r"(?:<|\\le(?![a-z]))"
_MORE = r"(?:>|\\ge(?![a-z]))"
_CHAIN = re.compile(rf"(.{{1,60}}?) ?({_LESS}|{_MORE}) ?([a-z]) ?({_LESS}|{_MORE}) ?(.{{1,60}})")
_HALF = re.compile(rf"([a-z]) ?({_LESS}|{_MORE}|\\ne(?![a-z])) ?(.{{1,60}})|(.{{1,60}}?) ?({_LESS}|{_MORE}) ?([a-z])")
_INTERVAL = re.compile(r"([(\[])([^,()\[\]]{1,60}),([^,()\[\]]{1,60})([)\]])")
_COMMAND = re.compile(r"\\(?:frac|sqrt|pi|infty|cdot|times)(?![a-zA-Z])")
_NOT_CONSTANT = re.compile(r"[a-zA-Z=<>|]")


@dataclass(frozen=True, slots=True)
class Span:
    """One interval: its brackets, `(]` for instance, and the texts of its ends."""

    brackets: str
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Reals:
    """A union of intervals in the order of the text, and the letter that an inequality was about ("" for none)."""

    letter: str
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        return "\\cup".join(f"{s.brackets[0]}{s.low},{s.high}{s.brackets[1]}" for s in self.spans)


@lru_cache(maxsize=4096)
def read_reals(text: str) -> Reals | None:
    """The set that a normalised text spells; None for anything else."""
    letter = ""
    if built := _BUILDER.fullmatch(text):
        letter, text = built.group(1), built.group(2).strip()
        if not (found := _inequalities(text)) or found.letter != letter:
            return None
        return found
    if member := _MEMBER.match(text):
        letter, text = member.group(1), text[member.end() :]
    if text.startswith(("(", "[")):
        spans = _union(text)
        return Reals(letter, spans) if spans else None
    return _inequalities(text) if not letter else None


def _union(text: str) -> tuple[Span, ...] | None:
    parts = text.split("\\cup", MAX_SPANS)
    found = [_INTERVAL.fullmatch(part.strip()) for part in parts]
    if len(parts) > MAX_SPANS or not all(found):
        return None
    spans = []
    for match in found:
        assert match is not None
        opening, low, high, closing = match.groups()
        if not (_is_constant(low) and _is_constant(high)):
            return None
        spans.append(Span(opening + closing, low.strip(), high.strip()))
    return tuple(spans)


def _inequalities(text: str) -> Reals | None:
    parts = split_top(text) or []
    read = [_inequality(part) for part in parts]
    if not read or len(read) > 2 or None in read:
        return None
    found = [one for one in read if one is not None]
    if len(found) == 1:
        return found[0]
    first, second = found
    if first.letter != second.letter or len(first.spans) != 1 or len(second.spans) != 1:
        return None
    low, high = (first.spans[0], second.spans[0])
    if low.low != "-\\infty" and high.low == "-\\infty":
        low, high = high, low
    if low.low != "-\\infty" or high.high != "\\infty" or low.high == "\\infty" or high.low == "-\\infty":
        return None
    end, start = value_of(low.high), value_of(high.low)
    if end is None or start is None:
        return None
    if end <= start:
        return Reals(first.letter, (low, high))
    return Reals(first.letter, (Span(high.brackets[0] + low.brackets[1], high.low, low.high),))


def _inequality(text: str) -> Reals | None:
    if chain := _CHAIN.fullmatch(text):
        low, first, letter, second, high = chain.groups()
        if first in (">", "\\ge") and second in (">", "\\ge"):
            low, first, second, high = high, second, first, low
        elif first not in ("<", "\\le") or second not in ("<", "\\le"):
            return None
        if not (_is_constant(low) and _is_constant(high)):
            return None
        return Reals(letter, (Span(("(" if first in "<>" else "[") + (")" if second in "<>" else "]"), low, high),))
    half = _HALF.fullmatch(text)
    if half is None:
        return None
    letter, sign, end = half.group(1), half.group(2), half.group(3)
    if letter is None:
        end, sign, letter = half.group(4), half.group(5), half.group(6)
        sign = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}[sign]
    if not _is_constant(end):
        return None
    below = Span("(" + (")" if sign in ("<", "\\ne") else "]"), "-\\infty", end)
    above = Span(("(" if sign in (">", "\\ne") else "[") + ")", end, "\\infty")
    if sign == "\\ne":
        return Reals(letter, (below, above))
    return Reals(letter, (below,) if sign in ("<", "\\le") else (above,))


def _is_constant(text: str) -> bool:
    return not _NOT_CONSTANT.search(_COMMAND.sub("", text))
