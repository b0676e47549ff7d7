r"""Problems with a context: what is asked for stands among sentences that it does not need.

    chains    [1] q:7*8+5\n[2] c:3-2*4\n … ?c                 each sentence is a chain, and one of them is asked for
    rows      [1] …\n[2] …\n … question                       a problem's sentences among those of others of its split
    contexts  a column of sentences, put before the row's question

The reference solution begins with the sentences that are needed, where they are known: `steps.quotes.needed` finds
them there.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from string import ascii_lowercase
from typing import Any

from capo_ray.problems.chains import Split, demonstrate, draw_chain, response_text
from capo_ray.problems.columns import BadRow, checked, value_at
from capo_ray.problems.streams import DrawnSource
from capo_ray.steps import cut_at_sentences
from capo_ray.steps.quotes import REQUEST, number_sentences, quote
from capo_ray.types import Problem


class HaystackSource(DrawnSource):
    """Chains among `size` of them."""

    def __init__(self, num_operations: int, size: int, seed: int) -> None:
        super().__init__(lambda seed, index: make_problem(seed, index, num_operations, size), seed)


def make_problem(seed: int, index: int, num_operations: int, size: int, split: Split = "train") -> Problem:
    """Problem number `index` of a seed, always the same; all its chains belong to `split`."""
    rng = random.Random(f"haystack/{split}/{num_operations}/{size}/{seed}/{index}")
    chains = [draw_chain(rng, num_operations, split) for _ in range(size)]
    names = rng.sample(ascii_lowercase, size)
    sentences = [f"{name}:{chain.prompt}" for name, chain in zip(names, chains, strict=True)]
    asked = rng.randrange(size)
    return Problem(
        id=f"haystack{num_operations}x{size}-{split}-{seed}-{index}",
        prompt=f"{number_sentences(sentences)}?{names[asked]}",
        answer=chains[asked].answer,
        solution=quote(sentences, [asked + 1]) + response_text(demonstrate(chains[asked])),
        source="haystack",
    )


def mix_rows(problems: Sequence[Problem], size: int) -> list[Problem]:
    """Each problem's sentences among those of `size` - 1 others, its last one asked behind them.

    Those of one problem keep their order. Problems of one sentence are left out. The draw depends on the
    problem's id and place alone.
    """
    cut = [(problem, _sentences(problem.prompt)) for problem in problems]
    whole = [(problem, sentences) for problem, sentences in cut if len(sentences) > 1]
    mixed = []
    for place, (problem, sentences) in enumerate(whole):
        rng = random.Random(f"haystack/{problem.id}/{place}")
        others = [k for k in rng.sample(range(len(whole)), min(size, len(whole))) if k != place][: size - 1]
        queues = [iter(whole[k][1][:-1]) for k in (place, *others)]
        turns = [owner for owner, k in enumerate((place, *others)) for _ in whole[k][1][:-1]]
        rng.shuffle(turns)
        needed = [n for n, owner in enumerate(turns, 1) if owner == 0]
        mixed.append(with_context(replace(problem, prompt=sentences[-1]), [next(queues[o]) for o in turns], needed))
    return mixed


def with_context(problem: Problem, sentences: Sequence[str], needed: Sequence[int] = ()) -> Problem:
    """The problem with numbered sentences before its question, and those that are needed before its solution."""
    flat = [" ".join(sentence.split()) for sentence in sentences]
    solution = quote(flat, needed) + (problem.solution or "") if needed else problem.solution
    prompt = f"{number_sentences(flat)}\n{problem.prompt}{REQUEST}"
    return replace(problem, prompt=prompt, solution=solution)


def read_sentences(row: Mapping[str, Any], context: str, evidence: str) -> tuple[list[str], list[int]]:
    """The sentences in a row's column and the numbers in another (none where it is not named); raises `BadRow`."""
    told = value_at(row, context)
    sentences = _sentences(told) if isinstance(told, str) else told
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
        raise BadRow(f"expected sentences, or one text of them, in {context!r}, got {str(told)[:40]!r}")
    checked("".join(sentences), context)
    needed = value_at(row, evidence) if evidence else []
    if not isinstance(needed, list) or not all(type(n) is int and 0 < n <= len(sentences) for n in needed):
        raise BadRow(f"expected numbers from 1 to {len(sentences)} in {evidence!r}, got {str(needed)[:40]!r}")
    return sentences, needed


def _sentences(text: str) -> list[str]:
    ends = [0, *cut_at_sentences(text), len(text)]
    pieces = (text[start:end].strip() for start, end in pairwise(ends))
    return [piece for piece in pieces if piece]
