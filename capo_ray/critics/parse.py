"""Reads a critic's answer: which steps it calls wrong, and whether it holds the solution to be right.

    [<think> … </think>] anything  Judgement: Yes|No  anything  <incorrect_steps> 2, 5 </incorrect_steps>  anything

Invariant: what cannot be read, or names a step that is not there, is *invalid* (None) and abstains; it is never "no
error". The last verdict counts, so a quoted one cannot pass for the critic's own. Linear time, bounded input.
"""

from __future__ import annotations

import re
from collections import deque

MAX_CHARS = 200_000
Parsed = tuple[frozenset[int] | None, bool | None, str]

_THINK = re.compile(r"<(/?)(?:think|thinking|thought)>", re.IGNORECASE)
_TAG = re.compile(r"<\s{0,3}(/?)\s{0,3}incorrect\\?[ _-]?steps?\s{0,3}>", re.IGNORECASE)
# Markdown, quotes, brackets and line ends may stand between the word and its answer, but no other words.
_JUDGEMENT = re.compile(
    r"\bjudge?ment[\s*_:=`\"'\[\](){}<>.-]{1,24}(?:(yes|correct|true)|(no|incorrect|false))(?![a-z0-9])", re.IGNORECASE
)
_ITEM = re.compile(r"(?:<\s{0,3}/?\s{0,3})?(?:steps?\s{0,3}[_#:-]?\s{0,3})?([0-9]{1,9})(?![0-9a-z])(?:\s{0,3}>)?")
_SEPARATOR = re.compile(r"(?:[\s,;&|\[\](){}\"'`*]|\.(?![0-9])|and(?![a-z]))+")
_NONE = frozenset({"", "none", "n/a", "na", "null", "nil", "empty", "no steps", "-", "∅"})


def parse_critique(text: str, num_steps: int, rubric: str = "paper", *, truncated: bool = False) -> Parsed:
    """The flagged steps (0-based; None = invalid), the overall verdict (None = not said) and why it is invalid.

    `rubric="paper"`: judged correct without a list means that no step is wrong (2508.02298 asks for the list only
    otherwise); under any other rubric the list must be there. `truncated`: the answer was cut off at its token limit,
    so that only a closed list is believed.
    """
    if len(text) > MAX_CHARS:
        return None, None, f"critique longer than {MAX_CHARS} characters"
    body = _without_thinking(text)
    if body is None:
        return None, None, "thinking not closed"
    overall = _overall(body)
    tags = list(_TAG.finditer(body))
    if not tags:
        if overall and rubric == "paper" and not truncated:
            return frozenset(), overall, ""
        return None, overall, "no list of wrong steps" if overall is not None else "no verdict"
    if len(tags) < 2 or not tags[-1].group(1) or tags[-2].group(1):
        return None, overall, "list of wrong steps not closed"
    flagged, reason = _read_list(body[tags[-2].end() : tags[-1].start()], num_steps)
    return flagged, overall, reason


def _without_thinking(text: str) -> str | None:
    """What follows the last closed thinking; None if thinking is open at the end.

    The opening tag may be missing: some chat templates put it in the prompt.
    """
    last = _last(_THINK, text)
    if last is None:
        return text
    return text[last.end() :] if last.group(1) else None


def _overall(text: str) -> bool | None:
    last = _last(_JUDGEMENT, text)
    return None if last is None else bool(last.group(1))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _read_list(content: str, num_steps: int) -> tuple[frozenset[int] | None, str]:
    """The indices in a list, or None and why; any letter that is no index, separator or "none" makes it unreadable."""
    text = content.strip().lower()
    if text.strip("[](){}.\"'` ") in _NONE:
        return frozenset(), ""
    flagged: set[int] = set()
    at = 0
    while at < len(text):
        separator = _SEPARATOR.match(text, at)
        if separator:
            at = separator.end()
            continue
        item = _ITEM.match(text, at)
        if item is None:
            return None, f"list of wrong steps not readable at {text[at : at + 20]!r}"
        index = int(item.group(1))
        if index >= num_steps:
            return None, f"step {index} not in 0..{num_steps - 1}"
        flagged.add(index)
        at = item.end()
    return frozenset(flagged), ""
