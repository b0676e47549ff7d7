"""A checkpoint of other ranks, another stage or another backend, dealt anew: every number of a master has an address.

    rankN.json: pieces of each master = [weight, place in the master, begin, end in the flat weight]
    ours:       the same of this rank   ->   for each piece, the parts of the files that overlap it

Adam's state of a weight lies beside it, number by number. Only what this rank holds is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from capo_ray.protocols import RunFailed

Piece = tuple[str, int, int, int]
"""Weight, where its part begins in the master, and the part: [begin, end) of the flat weight."""
Pieces = list[tuple[int, list[Piece]]]
"""Of each master its numbers, padding included, and its pieces."""
OF_NUMBERS = ("exp_avg", "exp_avg_sq")  # Adam's state that has a number for each of the master's


def cut(weights: Sequence[tuple[str, int, int]], start: int, size: int) -> list[Piece]:
    """The pieces of a master that is [start, start + size) of weights (name, offset, numbers) laid end to end."""
    found: list[Piece] = []
    for name, offset, numel in weights:
        begin, end = max(start, offset), min(start + size, offset + numel)
        if begin < end:
            found.append((name, begin - start, begin - offset, end - offset))
    return found


def end_to_end(named: Sequence[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """(name, offset, numbers) of weights (name, numbers) one behind the other."""
    offset, placed = 0, []
    for name, numel in named:
        placed.append((name, offset, numel))
        offset += numel
    return placed


def read_pieces(directory: Path, own: Pieces) -> dict[str, torch.Tensor]:
    """What `Backend.load_shard` takes for the masters `own`, all of them flat."""
    from safetensors import safe_open

    sources: dict[str, list[tuple[Any, int, Piece]]] = {}
    for notes in sorted(directory.glob("rank*.json")):
        file = safe_open(str(notes.with_suffix(".safetensors")), framework="pt")
        for index, (_, pieces) in enumerate(json.loads(notes.read_text())["facts"]["pieces"]):
            for name, at, begin, end in pieces:
                sources.setdefault(name, []).append((file, index, (name, at, begin, end)))
    tensors: dict[str, torch.Tensor] = {}
    for index, (size, pieces) in enumerate(own):
        for kind in ("master", *OF_NUMBERS):
            key = f"master.{index}" if kind == "master" else f"state.{index}.{kind}"
            tensors[key] = _assemble(directory, kind, pieces, size, sources)
        tensors[f"state.{index}.step"] = _step(sources)
    return tensors


def _assemble(
    directory: Path, kind: str, pieces: Sequence[Piece], size: int, sources: dict[str, list[tuple[Any, int, Piece]]]
) -> torch.Tensor:
    """One master, or one kind of its state; what no weight stands behind (padding) is 0."""
    whole = torch.zeros(size)
    for name, at, begin, end in pieces:
        done = 0
        for first, last, part in _overlaps(kind, begin, end, sources.get(name, [])):
            whole[at + first - begin : at + last - begin] = part
            done += last - first
        if done < end - begin:
            raise RunFailed(
                f"expected all of {name} in the shards of {directory} (got {done} of {end - begin} numbers); resume "
                f"with the same model.path"
            )
    return whole


def _overlaps(
    kind: str, begin: int, end: int, sources: Sequence[tuple[Any, int, Piece]]
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(first, last, numbers) of parts that together are [begin, end) of a flat weight; none comes twice."""
    at = begin
    for file, index, (_, place, first, last) in sorted(sources, key=lambda source: source[2][2]):
        if first <= at < min(last, end):
            until = min(last, end)
            key = f"master.{index}" if kind == "master" else f"state.{index}.{kind}"
            flat = file.get_tensor(key).reshape(-1) if key in file.keys() else torch.zeros(place + last - first)  # noqa: SIM118
            yield at, until, flat[place + at - first : place + until - first]
            at = until


def _step(sources: dict[str, list[tuple[Any, int, Piece]]]) -> torch.Tensor:
    """Adam's count of moves, the same everywhere."""
    for file, index, _ in (source for found in sources.values() for source in found):
        if f"state.{index}.step" in file.keys():  # noqa: SIM118  # a file of tensors has no `in`
            step: torch.Tensor = file.get_tensor(f"state.{index}.step")
            return step.reshape(())
    return torch.zeros(())
