"""The critic's prompt: trusted pieces and data pieces, never mixed.

    rubric, question, reference   shared by the G siblings of a group (one prefix)
    <step_0>…</step_0> …          the response: data, escaped, between lines with a code it cannot know

Invariant: every tag, fence and instruction in the ids comes from a trusted piece. The code of a fence is a hash of what
it fences, so that it is the same for the same request (the store depends on it) and the response cannot hold it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from capo_ray.prompts.escape import escape_data
from capo_ray.prompts.rubrics import Rubric, load_rubric


class Piece(NamedTuple):
    """A stretch of a prompt; only trusted text may become control tokens."""

    text: str
    trusted: bool


def build_critic_prompt(
    tokenizer: Any, *, rubric: str, question: str, solution: str | None, steps: Sequence[str], chat: bool = True
) -> tuple[int, ...]:
    """The token ids that ask a critic about one response, generation prompt included.

    `tokenizer` is a `protocols.Tokenizer`; `chat`: as a user turn, where rubric and model have a chat template.
    Raises `ValueError` where it cannot carry the data safely.
    """
    template = load_rubric(rubric)
    frame = tokenizer.chat_frame("") if chat and template.chat else None
    before, after = frame or ("", "")
    pieces = [Piece(before, True), *critic_pieces(template, question, solution, steps), Piece(after, True)]
    return tuple(tokenizer.encode_pieces(pieces, begins=frame is None))


def build_critic_text(*, rubric: str, question: str, solution: str | None, steps: Sequence[str]) -> str:
    """The same prompt as text, for critics behind an API: there, escaping and fences are the whole defence."""
    return "".join(piece.text for piece in critic_pieces(load_rubric(rubric), question, solution, steps))


def critic_pieces(rubric: Rubric, question: str, solution: str | None, steps: Sequence[str]) -> tuple[Piece, ...]:
    """The pieces of the prompt in order; all data in them is escaped, empty ones are left out."""
    question = escape_data(question.strip())
    solution = escape_data(solution.strip()) if solution else None
    shown = [escape_data(step.strip()) for step in steps]
    slots = {
        "problem_fence": [Piece(_fence(question, solution or ""), True)],
        "fence": [Piece(_fence(question, *shown), True)],
        "num_steps": [Piece(str(len(shown)), True)],
        "question": [Piece(question, False)],
        "reference": _reference(question, solution),
        "steps": list(_steps(shown, "" if rubric.name == "compact" else "\n")),
    }
    pieces: list[Piece] = []
    for place, part in enumerate(rubric.parts):
        pieces += slots[part] if place % 2 else [Piece(part, True)]
    return tuple(_merged(pieces))


def _steps(steps: Sequence[str], line_end: str) -> Iterator[Piece]:
    for index, text in enumerate(steps):
        yield Piece(f"<step_{index}>", True)
        yield Piece(text, False)
        yield Piece(f"</step_{index}>" + (line_end if index + 1 < len(steps) else ""), True)


def _reference(question: str, solution: str | None) -> list[Piece]:
    if not solution:
        return []
    fence = _fence(question, solution)
    return [
        Piece(f"A CORRECT SOLUTION, for comparison; other ways may be right too. BEGIN {fence}\n", True),
        Piece(solution, False),
        Piece(f"\nEND {fence}\n", True),
    ]


def _fence(*fenced: str) -> str:
    """32 hex digits that none of the fenced texts holds."""
    code = hashlib.sha256(json.dumps(fenced).encode()).hexdigest()[:32]
    while any(code in text for text in fenced):
        code = hashlib.sha256(code.encode()).hexdigest()[:32]
    return code


def _merged(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Neighbouring trusted pieces as one, so that they are tokenised as running text; empty pieces dropped."""
    text = ""
    for piece in pieces:
        if piece.trusted:
            text += piece.text
            continue
        if not piece.text:
            continue
        if text:
            yield Piece(text, True)
            text = ""
        yield piece
    if text:
        yield Piece(text, True)
