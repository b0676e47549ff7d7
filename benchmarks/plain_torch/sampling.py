"""Samples many continuations of each prompt at once; those that are still the same are computed once.

A row is a distinct text so far, a stream one continuation that was asked for. Streams of a row that draw different
tokens part into rows of their own. Each stream is a plain sample: sharing changes the cost, not the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from plain_torch.model import Cache, Model


@dataclass(frozen=True)
class Sampled:
    """One continuation: its token ids, end-of-sequence included where it was drawn, and their logprobs."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


@torch.no_grad()
def sample(
    model: Model,
    prompts: Sequence[Sequence[int]],
    count: int,
    *,
    max_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[Sampled]]:
    """`count` continuations of each prompt; logprobs are at the temperature, before `top_p`."""
    lengths = torch.tensor([len(p) for p in prompts])
    longest, num_streams = int(lengths.max()), len(prompts) * count
    cache = Cache(model, num_streams, longest + max_tokens)
    ids = torch.tensor([list(p) + [0] * (longest - len(p)) for p in prompts])
    logits = cache.prefill(ids, lengths)
    rows = torch.arange(len(prompts)).repeat_interleave(count)  # [streams under way]: the row of each
    alive = torch.arange(num_streams)
    tokens = torch.full((num_streams, max_tokens), -1)
    logprobs = torch.zeros(num_streams, max_tokens)
    for t in range(max_tokens):
        drawn, scores = draw(logits, rows, temperature, top_p, generator)
        tokens[alive, t], logprobs[alive, t] = drawn, scores
        going = drawn != model.eos
        alive, rows, drawn = alive[going], rows[going], drawn[going]
        if not len(alive) or t + 1 == max_tokens:
            break
        rows, fed = part(cache, rows, drawn, len(logits))
        logits = cache.step(fed)
    return collect(tokens, logprobs, model.eos, count)


def draw(
    logits: torch.Tensor, rows: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each stream and its logprob; temperature 0 is greedy."""
    logps = torch.log_softmax(logits / (temperature or 1.0), -1)
    if temperature == 0:
        chosen = logps.argmax(-1)[rows]
    else:
        probs = logps.exp()
        if top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            ordered[(ordered.cumsum(-1) - ordered) >= top_p] = 0.0
            probs = torch.zeros_like(probs).scatter_(1, order, ordered)
        chosen = torch.multinomial(probs[rows], 1, generator=generator).squeeze(1)
    return chosen, logps[rows, chosen]


def part(cache: Cache, rows: torch.Tensor, drawn: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The new row of each stream and the token to feed to every row, once streams that differ have rows of their own.

    The first branch of a row stays in place, the others are copied to the end; dead rows are fed a pad token until
    they are a quarter of all.
    """
    size = int(drawn.max()) + 1
    pairs, branch = torch.unique(rows * size + drawn, return_inverse=True)
    parents, fed = pairs // size, pairs % size
    first = torch.ones_like(parents, dtype=torch.bool)
    first[1:] = parents[1:] != parents[:-1]
    if len(parents) > int(first.sum()):
        extra = ~first
        if num_rows + int(extra.sum()) > len(cache.lengths):
            parents = cache.keep_rows(parents[first])[torch.cumsum(first, 0) - 1]
            num_rows = int(first.sum())
        places = parents.clone()
        places[extra] = num_rows + torch.arange(int(extra.sum()))
        cache.copy_rows(parents[extra], num_rows)
        num_rows += int(extra.sum())
    else:
        places = parents
    if len(places) < 0.75 * num_rows:
        places = cache.keep_rows(places)
        num_rows = len(places)
    tokens = torch.zeros(num_rows, dtype=torch.long)
    tokens[places] = fed
    return places[branch], tokens


def collect(tokens: torch.Tensor, logprobs: torch.Tensor, eos: int, count: int) -> list[list[Sampled]]:
    """The streams by prompt, each cut at its end."""
    streams = []
    for ids, scores in zip(tokens.tolist(), logprobs.tolist(), strict=True):
        end = ids.index(eos) + 1 if eos in ids else len(ids)
        streams.append(Sampled(tuple(ids[:end]), tuple(scores[:end]), eos in ids))
    return [streams[i : i + count] for i in range(0, len(streams), count)]
