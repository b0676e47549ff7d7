"""Reads a rubric: the trusted text around the slots into which question, reference and steps go.

    text [{problem_fence}] {question} … {reference} … [{fence}] {steps} … [{fence}] text

What stands before the first slot that depends on the response is the same for all siblings of a group, so an engine
with a prefix cache reads it once; a template that puts `{fence}` or `{num_steps}` before `{question}` is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SLOTS = ("question", "reference", "steps", "num_steps", "fence", "problem_fence")
RUBRICS = ("paper", "every_step", "compact")
_SLOT = re.compile(r"\{(" + "|".join(SLOTS) + r")\}")
_COMPACT = "{question}\n{steps}\n"


@dataclass(frozen=True, slots=True)
class Rubric:
    """A rubric cut at its slots: `parts` alternates trusted text (even places) and slot names (odd places)."""

    name: str
    text: str
    parts: tuple[str, ...]
    chat: bool
    """Put as a user turn of the critic's chat template; the compact layout is a bare continuation."""


@lru_cache(maxsize=32)
def load_rubric(name: str) -> Rubric:
    """The rubric of that name, or of the template file at that path; raises `ValueError` on one that cannot work."""
    if name == "compact":
        text = _COMPACT
    elif name in RUBRICS:
        text = (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8")
    elif (file := Path(name).expanduser()).is_file():
        text = file.read_text(encoding="utf-8")
    else:
        raise ValueError(f"critic.rubric must be one of {', '.join(RUBRICS)} or the path of a template (got {name!r})")
    parts = tuple(_SLOT.split(text))
    _check_slots(name, parts[1::2])
    return Rubric(name, text, parts, chat=name != "compact")


def _check_slots(name: str, slots: tuple[str, ...]) -> None:
    for slot in ("question", "steps"):
        if slots.count(slot) != 1:
            raise ValueError(f"rubric {name} must hold {{{slot}}} exactly once (got {slots.count(slot)})")
    if slots.count("reference") > 1:
        raise ValueError(f"rubric {name} must hold {{reference}} at most once (got {slots.count('reference')})")
    shared = slots[: slots.index("question")]
    if slots.index("steps") < slots.index("question") or "fence" in shared or "num_steps" in shared:
        raise ValueError(
            f"rubric {name} must put {{question}} before {{steps}}, {{fence}} and {{num_steps}}, "
            "so that siblings share their prefix"
        )
