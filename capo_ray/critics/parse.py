"""Reads a critic's answer: which steps it calls wrong, and whether it holds the solution to be right.

    [<think> … </think>] anything  Judgement: Yes|No  anything  <incorrect_steps> 2, 5 </incorrect_steps>  anything

Invariant: what cannot be read, or names a step that is not there, is *invalid* (None) and abstains; it is never "no
error". The last verdict counts, so a quoted one cannot pass for the critic's own; the example of a repeated prompt is
none. Linear time, bounded input.
"""

from __future__ import annotations

import re
from collections import deque

MAX_CHARS = 200_000
Parsed = tuple[frozenset[int] | None, bool | None, str]

_THINK = re.compile(r"<(/?)(?:think|thinking|thought)>", re.IGNORECASE)
_TAG = re.compile(r"<\s{0,3}(/?)\s{0,3}incorrect\\?[ _-]?steps?\s{0,3}>", re.IGNORECASE)
# The rubrics' own example of a list and what stands beside it, which a weak critic repeats.
_EXAMPLE = re.compile(
    r"\b(?:for example|e\.g\.),?\s{0,3}<incorrect_steps>[^<]{0,60}</incorrect_steps>"
    r"(?:,?\s{0,3}or\s{0,3}<incorrect_steps>\s{0,3}</incorrect_steps>)?",
    re.IGNORECASE,
)
# Markdown, quotes, brackets and line ends may stand between the word and its answer, and the question that asks for it
# (2508.02298 writes "Judgment: Is the solution correct (Yes/No)?"), but no other words.
_MARKS = r"[\s*_:=`\"'\[\](){}<>.?\\-]"
_JUDGEMENT = re.compile(
    rf"\bjudge?ment{_MARKS}{{1,24}}(?:"
    rf"(?:is the (?:final )?(?:solution|answer) correct{_MARKS}{{0,24}})?(?:yes\s?/\s?no{_MARKS}{{1,24}})?"
    rf"(?:(?:boxed|text|textbf|mathbf)\s?\{{\s?)*"
    rf"(?:(yes|correct|true)|(?:no|incorrect|false))(?![a-z0-9/])"
    rf"|the (?:final )?(?:solution|answer) is (?:(correct)|incorrect|not correct|wrong)"
    rf"(?={_MARKS}{{0,8}}(?:[.!\n]|$)))",
    re.IGNORECASE,
)
_ITEM = re.compile(
    r"(?:<\s{0,3}/?\s{0,3})?(?:steps?\s{0,3}[_#:-]?\s{0,3})?#?([0-9]{1,9})(?![0-9a-z])(?:\s{0,3}/?\s{0,3}>)?"
)
_TO = re.compile(r"[ \t]{0,3}(?:[-‐‑–—−~]|to\b|through\b)[ \t]{0,3}")
_SEPARATOR = re.compile(
    r"(?:[\s,;&|\[\](){}\"'`*、]|\.(?![0-9])|and(?![a-z])|<\s{0,3}/?\s{0,3}steps?\s{0,3}/?\s{0,3}>)+"
)
_FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}
_BULLET = re.compile(r"^[ \t]*[-+*•·–][ \t]+", re.MULTILINE)
_ORDINAL = re.compile(r"^[ \t]*([0-9]{1,3})[.)][ \t]+(?=\S)", re.MULTILINE)
_NO_STEPS = re.compile(
    r"(?:there (?:are|is) )?(?:no|none)(?: of the(?:se)?)?(?: (?:incorrect|wrong|erroneous))?"
    r"(?: (?:steps?|errors?|mistakes?))?"
    r"(?: (?:are|is) (?:incorrect|wrong))?(?: found)?"
)
_NONE = frozenset({"", "none", "n/a", "na", "null", "nil", "empty", "no steps", "-", "∅", "无", "没有", "無"})


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
    body = _EXAMPLE.sub(" ", body)
    overall = _overall(body)
    tags = list(_TAG.finditer(body))
    if not tags and truncated:
        return None, overall, "cut off at max_tokens before its list of wrong steps"
    if not tags:
        if overall and rubric == "paper":
            return frozenset(), overall, ""
        return None, overall, "no list of wrong steps" if overall is not None else "no verdict"
    if len(tags) < 2 or not tags[-1].group(1) or tags[-2].group(1):
        return None, overall, "list of wrong steps not closed"
    flagged, reason = _read_list(body[tags[-2].end() : tags[-1].start()], num_steps, overall)
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
    return None if last is None else bool(last.group(1) or last.group(2))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _read_list(content: str, num_steps: int, overall: bool | None) -> tuple[frozenset[int] | None, str]:
    """The indices in a list, or None and why; any letter that is no index, separator or "none" makes it unreadable.

    Bullets are passed over, and so are the ordinals 1, 2, … of lines that name steps; a range holds both of its ends.
    ProcessBench's -1 is none where the solution is judged correct.
    """
    text = content.translate(_FULL_WIDTH).strip().lower()
    bare = text.strip("[](){}.\"'`!。 ")
    if bare in _NONE or _NO_STEPS.fullmatch(bare) or (overall and bare == "-1"):
        return frozenset(), ""
    text, reason = _without_ordinals(_BULLET.sub("", text))
    flagged: set[int] = set()
    at = 0
    while at < len(text) and not reason:
        separator = _SEPARATOR.match(text, at)
        if separator:
            at = separator.end()
            continue
        item = _ITEM.match(text, at)
        if item is None:
            return None, f"list of wrong steps not readable at {text[at : at + 20]!r}"
        first = last = int(item.group(1))
        to = _TO.match(text, item.end())
        end = _ITEM.match(text, to.end()) if to else None
        if end is not None:
            item, last = end, int(end.group(1))
        if last >= num_steps or first > last:
            return None, f"step {first if end is None else f'{first} to {last}'} not in 0..{num_steps - 1}"
        flagged.update(range(first, last + 1))
        at = item.end()
    if not flagged and not reason:  # separators alone: "inside <incorrect_steps> and </incorrect_steps>"
        reason = f"list of wrong steps not readable at {bare[:20]!r}"
    return (None, reason) if reason else (frozenset(flagged), "")


def _without_ordinals(text: str) -> tuple[str, str]:
    """The text without the numbers that count its lines; why it cannot be told which numbers those are, or nothing."""
    ordinals = list(_ORDINAL.finditer(text))
    if not ordinals:
        return text, ""
    rests = [text[mark.end() :].lstrip("<*_`\"' ") for mark in ordinals]
    counted = [int(mark.group(1)) for mark in ordinals]
    if counted == list(range(1, len(counted) + 1)) and all(rest.startswith("step") for rest in rests):
        return _ORDINAL.sub("", text), ""
    return text, "numbered list of wrong steps: its own numbers and those of steps cannot be told apart"
