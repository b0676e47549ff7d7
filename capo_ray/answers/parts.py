r"""The parts of a normalised answer: the name it is given, `x=`, and the entries it lists, `\pm` counting as two."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

MAX_PARTS = 64

_WORD = r"[A-Za-z]{1,4}"
_SUB = r"(?:_(?:\{[^{}=]{1,20}\}|\w))?"
_NAME = re.compile(
    r"(?:\\(?:angle|triangle|overline|text|mathrm|vec|Delta|Phi|Omega|alpha|beta|gamma|theta|lambda|mu|rho|sigma|phi)"
    rf"(?: ?\{{[^{{}}=]{{1,20}}\}}| ?[A-Z]{{1,4}})?{_SUB}|{_WORD}{_SUB}(?::{_WORD}{_SUB})?|\|[A-Z]{{2}}\|)"
    r"(?:\([^()=]{1,20}\)|\[[^\[\]=]{1,20}\])?=|\([a-zA-Z](?:,[a-zA-Z]){1,4}\)="
)
_BRACKETS = (("(", ")"), ("[", "]"), ("\\{", "\\}"))
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-zA-Z]) ?")


@dataclass(frozen=True, slots=True)
class Entries:
    r"""The brackets of a list (`()`, `[]`, `\{\}`, "" for none) and its entries; a text that is no list is its one."""

    kind: str
    texts: tuple[str, ...]


@lru_cache(maxsize=4096)
def split_name(text: str) -> tuple[str, str]:
    """The name that an answer is given and the answer; "" where it has none, or more than one equals sign."""
    match = _NAME.match(text)
    if match is None or "=" in text[match.end() :] or match.end() == len(text):
        return "", text
    return match.group()[:-1], text[match.end() :].strip()


@lru_cache(maxsize=4096)
def entries_of(text: str) -> Entries:
    """The entries of a list. A set has each only once; half-open brackets are an interval's, which is one entry."""
    for opening, closing in _BRACKETS:
        if text.startswith(opening) and text.endswith(closing):
            inside = split_top(text[len(opening) : -len(closing)])
            if inside is not None and (len(inside) > 1 or opening == "\\{") and "|" not in text:
                texts = tuple(both for entry in inside for both in _both_signs(entry))
                return Entries(opening + closing, tuple(dict.fromkeys(texts)) if opening == "\\{" else texts)
    parts = split_top(text) or [text]
    return Entries("", tuple(both for entry in parts for both in _both_signs(entry)))


def split_top(text: str) -> list[str] | None:
    """The text at its commas outside of brackets; None where brackets do not match."""
    if "," not in text:
        return [text] if text.count("(") == text.count(")") else None
    depth, start, parts = 0, 0, []
    for index, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif char == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part] if len(parts) <= MAX_PARTS else [text]


def _both_signs(entry: str) -> tuple[str, ...]:
    r"""`1\pm x` as `1+x` and `1-x`; an entry without the sign, or with a matrix, as it is."""
    if "\\pm" not in entry or "\\begin" in entry:
        return (entry,)
    name, value = split_name(entry)
    prefix = f"{name}=" if name else ""
    plus = _PLUS_MINUS.sub(lambda m: "+" if m.group(1) == "pm" else "-", value)
    minus = _PLUS_MINUS.sub(lambda m: "-" if m.group(1) == "pm" else "+", value)
    return tuple(prefix + re.sub(r"(^|[({])\+", r"\1", side) for side in (plus, minus))
