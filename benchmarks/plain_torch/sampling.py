"""Samples many continuations of many prompts at once; those that are still the same are computed once.

A row is a distinct text so far, a stream one continuation that was asked for. Streams of a row that draw different
tokens part into rows of their own. Each stream is a plain sample under a seed of its own: what else is sampled beside
it changes the cost, and the last digit of a logit, but not what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plain_torch.model import Cache, Model

FIRST_ROOM = 64
"""Tokens behind the prompts for which there is room at the start: few streams need all that they may take."""


@dataclass(frozen=True)
class Asked:
    """What is asked of one prompt; stream i of `count` has the seed `seed` + i."""

    prompt: Sequence[int]
    count: int
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Sampled:
    """One continuation: its token ids, end-of-sequence included where it was drawn, and per token what was asked for.

    `logprobs` are at the temperature, before `top_p`; `entropies` are those of the same distribution.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    finished: bool


@torch.no_grad()
def sample(
    model: Model,
    asked: Sequence[Asked],
    temperature: float = 1.0,
    top_p: float = 1.0,
    stops: Sequence[int] = (),
) -> list[list[Sampled]]:
    """The continuations of each prompt; temperature 0 is greedy; one ends at any of `stops`, as at end-of-sequence."""
    ends = torch.tensor([model.eos, *stops])
    lengths = torch.tensor([len(a.prompt) for a in asked])
    counts = torch.tensor([a.count for a in asked])
    limits = torch.tensor([a.max_tokens for a in asked]).repeat_interleave(counts)
    seeds = _mix(np.concatenate([np.uint64(a.seed) + np.arange(a.count, dtype=np.uint64) for a in asked]))
    longest, most, num_streams = int(lengths.max()), int(limits.max()), int(counts.sum())
    cache = Cache(model, num_streams, longest + min(most, FIRST_ROOM))
    ids = torch.tensor([[*a.prompt, *[0] * (longest - len(a.prompt))] for a in asked])
    logits = cache.prefill(ids, lengths)
    rows = torch.arange(len(asked)).repeat_interleave(counts)  # [streams under way]: the row of each
    alive = torch.arange(num_streams)
    tokens = torch.full((num_streams, most), -1)
    figures = torch.zeros(2, num_streams, most)
    for t in range(most):
        drawn, figures[:, alive, t] = _draw(logits, rows, temperature, top_p, _uniform(seeds[alive.numpy()], t))
        tokens[alive, t] = drawn
        going = ~torch.isin(drawn, ends) & (t + 1 < limits[alive])
        alive, rows, drawn = alive[going], rows[going], drawn[going]
        if not len(alive):
            break
        rows, fed = _part(cache, rows, drawn, len(logits))
        logits = cache.step(fed)
    return _collect(tokens, figures, frozenset(ends.tolist()), counts.tolist())


def _mix(x: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits that look random, one for each (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniform(seeds: np.ndarray, t: int) -> torch.Tensor:
    """The number in [0, 1) by which each stream draws its token t."""
    return torch.from_numpy((_mix(seeds + np.uint64((t + 1) * 0x9E3779B97F4A7C15 % 2**64)) >> np.uint64(11)) * 2.0**-53)


def _draw(
    logits: torch.Tensor, rows: torch.Tensor, temperature: float, top_p: float, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each stream, and its logprob and the entropy [2, streams]."""
    logps = torch.log_softmax(logits / (temperature or 1.0), -1)
    probs = logps.exp()
    entropies = -(probs * logps).sum(-1)
    if temperature == 0:
        chosen = logps.argmax(-1)[rows]
    else:
        if top_p < 1:
            ordered, order = probs.sort(-1, descending=True)
            ordered[(ordered.cumsum(-1) - ordered) >= top_p] = 0.0
            probs = torch.zeros_like(probs).scatter_(1, order, ordered)
        sums = probs.double().cumsum(-1)
        chosen = torch.searchsorted(sums[rows], (uniform * sums[rows, -1]).unsqueeze(1), right=True).squeeze(1)
    return chosen, torch.stack([logps[rows, chosen], entropies[rows]])


def _part(cache: Cache, rows: torch.Tensor, drawn: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
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


def _collect(
    tokens: torch.Tensor, figures: torch.Tensor, stops: frozenset[int], counts: Sequence[int]
) -> list[list[Sampled]]:
    """The streams by prompt, each cut at its end."""
    streams = []
    for ids, logprobs, entropies in zip(tokens.tolist(), *figures.tolist(), strict=True):
        end = next((t for t, token in enumerate(ids) if token < 0), len(ids))
        kept = tuple(ids[:end]), tuple(logprobs[:end]), tuple(entropies[:end])
        streams.append(Sampled(*kept, finished=ids[end - 1] in stops))
    flat = iter(streams)
    return [[next(flat) for _ in range(count)] for count in counts]


@torch.no_grad()
def score(
    model: Model, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> tuple[list[tuple[float, ...]], int]:
    """For each sequence the logprobs of its tokens from `start` on, and how many tokens were read for them.

    What sequences begin with in common is read once: they are paths of one tree, whose nodes are the positions of a
    single pass; each node sees its own path alone.
    """
    nodes: dict[tuple[int, int], int] = {}  # (node before, token) -> node
    paths = []
    for ids in sequences:
        path, at = [], -1
        for token in ids:
            at = nodes.setdefault((at, int(token)), len(nodes))
            path.append(at)
        paths.append(path)
    parents = [before for before, _ in nodes]
    mask, depths = np.zeros((len(nodes), len(nodes)), bool), np.zeros(len(nodes), np.int64)
    for node, before in enumerate(parents):
        if before >= 0:
            mask[node], depths[node] = mask[before], depths[before] + 1
        mask[node, node] = True
    ids_of = torch.tensor([[token for _, token in nodes]])
    hidden = model.forward(ids_of, torch.from_numpy(depths)[None], torch.from_numpy(mask)[None, None])[0]
    wanted = sorted({node for path, start in zip(paths, starts, strict=True) for node in path[start:]})
    logps = torch.log_softmax(model.logits(hidden[[parents[node] for node in wanted]]), -1)
    found = dict(zip(wanted, logps[torch.arange(len(wanted)), ids_of[0, wanted]].tolist(), strict=True))
    return [tuple(found[n] for n in path[start:]) for path, start in zip(paths, starts, strict=True)], len(nodes)
