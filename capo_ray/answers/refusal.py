"""Which answers are too costly to be worth a look: seen in the text, so they cost microseconds and not a time-out.

A refused answer is *undecided*, not wrong. The limits are far above what answers of known data sets hold; an answer
that is the reference's own text is equal before anything is refused.
"""

from __future__ import annotations

import re

MAX_NESTING = 12
MAX_POWER_DIGITS = 100_000
MAX_GROUP_POWER = 100
MAX_ENTRIES = 24
MAX_COUNT_DIGITS = 4

_UNFINISHED = re.compile(r"\\(?:i*int|oint|sum|prod|lim)(?![a-zA-Z])")
_TERM = r"(?:[0-9]+|e|\\pi)"
_TOWER = re.compile(rf"({_TERM})((?:\^\(*-?{_TERM})+)")
_TERMS = re.compile(_TERM)
_POWER_OF_GROUP = re.compile(r"[)\]}]\^\{?\(*([0-9]+)")
_LARGE_FACTORIAL = re.compile(rf"!!|[0-9]{{{MAX_COUNT_DIGITS + 1},}}!|\^(?:[0-9]+|\{{[^{{}}]*\}})!|[\^!].*[)}}\]]!")
_COUNTING = re.compile(r"\\(?:d?binom|Gamma|zeta)(?![a-zA-Z])")
_LARGE_COUNT = re.compile(rf"[0-9]{{{MAX_COUNT_DIGITS + 1},}}|\^")


def refusal(text: str, reference: str = "") -> str | None:
    """Why a normalised answer of at most `MAX_ANSWER_CHARS` is not looked at, or None."""
    if (operator := _UNFINISHED.search(text)) and not _UNFINISHED.search(reference):
        return f"an unfinished calculation ({operator.group()})"
    deepest = _nesting(text)
    if deepest > max(MAX_NESTING, _nesting(reference) + 2):
        return f"nested {deepest} deep"
    entries = text.count(",") + text.count("\\\\") + 1
    if entries > max(MAX_ENTRIES, 2 * (reference.count(",") + reference.count("\\\\") + 1)):
        return f"a list of {entries} entries"
    flat = text.replace("{", "").replace("}", "").replace(" ", "")
    if any(_too_high(match) for match in _TOWER.finditer(flat)):
        return "a power too large to write out"
    if any(int(match.group(1)[:9]) > MAX_GROUP_POWER for match in _POWER_OF_GROUP.finditer(text)):
        return "a power too large to expand"
    if "!" in text and _LARGE_FACTORIAL.search(text):
        return "a factorial too large to write out"
    if _COUNTING.search(text) and _LARGE_COUNT.search(text):
        return "a count too large to write out"
    return None


def _nesting(text: str) -> int:
    """The most brackets of any kind that are open at once."""
    depth = deepest = 0
    for char in text:
        if char in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")}]":
            depth -= 1
    return deepest


def _too_high(match: re.Match[str]) -> bool:
    """Whether `a^b^c…` has more than `MAX_POWER_DIGITS` digits; e and pi count as 3."""
    terms = _TERMS.findall(match.group())
    base, *exponents = (int(term[-20:]) if term[0].isdigit() else 3 for term in terms)
    if base <= 1:
        return False
    exponent = 1
    for power in reversed(exponents):
        if exponent > 32 and power > 1:
            return True
        exponent = min(power**exponent, 10**24)
    return exponent * len(terms[0]) > MAX_POWER_DIGITS
