r"""A context of numbered sentences before a question, and the sentences that a response quotes from it as evidence.

    question   [1] Ann has 3 pears.\n[2] Bob sings.\nHow many pears has Ann?
    response   <evidence>[1] Ann has 3 pears.</evidence>\n\n3\n\n\\boxed{3}

What a context is stands in the question alone, so that a line of `capo-ray credit` has it without a field of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

OPEN, CLOSE = "<evidence>", "</evidence>"
REQUEST = (
    "\n\nFirst copy the sentences above that you need, each on a line of its own with its number, between "
    f"{OPEN} and {CLOSE}. Then reason, with a blank line between steps."
)
"""What stands behind the question of rows with a context; the wording is ours. The chains have it not."""
_SENTENCE = re.compile(r"\[(\d{1,6})\] ([^\n]*)\n")
_QUOTE = re.compile(r"\[(\d{1,6})\] ([^\n]*)")
_AFTER = re.compile(re.escape(CLOSE) + r"\s*")


def number_sentences(sentences: Sequence[str], numbers: Sequence[int] = ()) -> str:
    """The sentences, each on a line behind its number: 1 and on, or those given."""
    return "".join(f"[{n}] {s}\n" for n, s in zip(numbers or range(1, len(sentences) + 1), sentences, strict=True))


def read_context(question: str) -> tuple[tuple[str, ...], str]:
    """The numbered sentences at the head of a question, and what stands behind them."""
    sentences, at = list[str](), 0
    while (found := _SENTENCE.match(question, at)) and int(found[1]) == len(sentences) + 1:
        sentences.append(found[2])
        at = found.end()
    return tuple(sentences), question[at:]


def pose(sentences: Sequence[str], numbers: Sequence[int], rest: str) -> str:
    """The question behind these sentences alone, asked without the request to quote them first."""
    shown = number_sentences([sentences[n - 1] for n in numbers], numbers)
    return shown + rest.removesuffix(REQUEST)


def quote(sentences: Sequence[str], numbers: Sequence[int]) -> str:
    """The evidence block that quotes these sentences of a context."""
    lines = number_sentences([sentences[n - 1] for n in numbers], numbers)
    return f"{OPEN}{lines.rstrip()}{CLOSE}\n\n"


def quoted(text: str, sentences: Sequence[str]) -> tuple[int, ...] | None:
    """The numbers of the sentences that a text quotes, in order and once each; None where it is not in format.

    In format is a text with one evidence block, of one sentence or more, each on its line as the context has it, number
    included.
    """
    if text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    start, end = text.index(OPEN) + len(OPEN), text.index(CLOSE)
    lines = [line.strip() for line in text[start:end].split("\n")]
    found = [_QUOTE.fullmatch(line) for line in lines if line]
    numbers = [int(one[1]) for one in found if one and 0 < int(one[1]) <= len(sentences)]
    if not numbers or len(numbers) < len(found):
        return None
    exact = all(one and one[2] == sentences[n - 1].strip() for one, n in zip(found, numbers, strict=True))
    return tuple(dict.fromkeys(numbers)) if exact else None


def block_end(text: str) -> int:
    """Where the first evidence block of a text ends, white space behind it included; 0 where none does."""
    found = _AFTER.search(text)
    return found.end() if found else 0


def needed(question: str, solution: str | None) -> tuple[int, ...]:
    """The numbers of the sentences that a reference solution quotes: the evidence; () where it is not known."""
    if not solution or OPEN not in solution:
        return ()
    return quoted(solution, read_context(question)[0]) or ()
