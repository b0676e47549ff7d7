"""The mutants of `publish_mutants`: weights gone wrong in transit, at the sender and in the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from capo_ray.engines import transfer
from capo_ray.engines.twin import Twin
from capo_ray.protocols import WeightsHandle
from capo_ray.weights import Manifest, as_bytes, read_manifest

State = dict[str, torch.Tensor]


# --- in transit ----------------------------------------------------------------------------------------------------


def resealed(handle: WeightsHandle, change: Callable[[Manifest], Manifest], payload: Any = None) -> WeightsHandle:
    """The handle with another manifest that fits its own fingerprint."""
    text = change(read_manifest(handle.manifest)).to_json()
    return WeightsHandle(handle.version, text, handle.payload if payload is None else payload)


def transit_mutants(good: WeightsHandle, old: WeightsHandle) -> Iterator[tuple[str, WeightsHandle]]:
    """Version `good`, or what passes for it, changed after it was sealed; as an actor hands it to its engine."""
    new = good.version
    manifest, bytes_, stale = read_manifest(good.manifest), as_bytes(good.payload), as_bytes(old.payload)
    entries = {entry.name: entry for entry in manifest.tensors}

    def with_payload(change: Callable[[Any], Any]) -> WeightsHandle:
        copy = bytes_.copy()
        return dataclasses.replace(good, payload=change(copy))

    def swap_bytes(copy: Any, one: str, other: str) -> Any:
        a, b = entries[one], entries[other]
        size = a.num_bytes
        copy[a.offset : a.offset + size] = bytes_[b.offset : b.offset + size]
        copy[b.offset : b.offset + size] = bytes_[a.offset : a.offset + size]
        return copy

    def flip(copy: Any) -> Any:
        copy[entries["model.norm.weight"].offset] ^= 1
        return copy

    def half_old(copy: Any) -> Any:
        for entry in manifest.tensors[::2]:
            copy[entry.offset : entry.offset + entry.num_bytes] = stale[entry.offset : entry.offset + entry.num_bytes]
        return copy

    def rolled(copy: Any) -> Any:
        entry = entries["model.embed_tokens.weight"]
        row = entry.num_bytes // entry.shape[0]
        end = entry.offset + entry.num_bytes
        copy[entry.offset : end] = [*copy[entry.offset + row : end], *copy[entry.offset : entry.offset + row]]
        return copy

    def zeroed(copy: Any) -> Any:
        entry = entries["model.layers.0.mlp.up_proj.weight"]
        copy[entry.offset : entry.offset + entry.num_bytes] = 0
        return copy

    def renamed(old_manifest: Manifest) -> Manifest:
        one, other = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
        swapped = {one: other, other: one}
        tensors = (dataclasses.replace(e, name=swapped.get(e.name, e.name)) for e in old_manifest.tensors)
        return dataclasses.replace(old_manifest, tensors=tuple(tensors))

    up = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    found = {
        "one bit flipped": with_payload(flip),
        "payload truncated": with_payload(lambda copy: copy[:-64]),
        "payload half gone": with_payload(lambda copy: copy[: len(copy) // 2]),
        "manifest truncated": dataclasses.replace(good, manifest=good.manifest[:-20]),
        "two tensors' bytes exchanged": with_payload(lambda copy: swap_bytes(copy, up[0], up[1])),
        "rows rolled": with_payload(rolled),
        "a tensor zeroed": with_payload(zeroed),
        "half of the tensors old": with_payload(half_old),
        "old payload under the new manifest": dataclasses.replace(good, payload=stale),
        "whole older handle": old,
        "whole older handle, relabelled": resealed(old, lambda m: dataclasses.replace(m, version=new)),
        "old tensors with the new canary, relabelled": resealed(
            old, lambda m: dataclasses.replace(m, version=new, canary=manifest.canary)
        ),
        "names of two tensors exchanged, resealed": resealed(good, renamed),
        "canary taken out, resealed": resealed(good, lambda m: dataclasses.replace(m, canary=None)),
    }
    for name, handle in found.items():
        yield name, dataclasses.replace(handle, version=new, fingerprint=good.fingerprint)


# --- at the sender -------------------------------------------------------------------------------------------------


def sender_mutants(right: State, older: Mapping[int, State]) -> Iterator[tuple[str, State, bool]]:
    """States that a mistaken sender would seal in place of `right`; True where its view of the model is mistaken.

    Then checksums are of the mistaken view as well: only what it does to scores, or the comparison with the files at
    the start, can tell. Otherwise what was gathered is not what lies in the model.
    """
    layers = sorted({int(n.split(".")[2]) for n in right if n.startswith("model.layers.")})

    def exchanged(pairs: Mapping[str, str]) -> State:
        both = {**pairs, **{b: a for a, b in pairs.items()}}
        return {name: right[both.get(name, name)] for name in right}

    def of_layers(a: int, b: int) -> dict[str, str]:
        mine = [n for n in right if n.startswith(f"model.layers.{a}.")]
        return {n: n.replace(f"layers.{a}.", f"layers.{b}.", 1) for n in mine}

    def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> State:
        return {**right, name: change(right[name]).contiguous()}

    yield "layers swapped", exchanged(of_layers(layers[0], layers[-1])), True
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm"):
        one, other = (f"model.layers.{layer}.{part}.weight" for layer in (layers[0], layers[-1]))
        yield f"{part} of two layers swapped", exchanged({one: other}), True
    first = "model.layers.0."
    for name, one, other in (
        ("gate and up swapped", "mlp.gate_proj.weight", "mlp.up_proj.weight"),
        ("keys and values swapped", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        ("norms of a layer swapped", "input_layernorm.weight", "post_attention_layernorm.weight"),
    ):
        yield name, exchanged({first + one: first + other}), True
    yield "embedding rows permuted", changed("model.embed_tokens.weight", lambda t: t.roll(1, 0)), True
    yield "a matrix's rows permuted", changed("model.layers.1.mlp.up_proj.weight", lambda t: t.flip(0)), True
    yield "a matrix zeroed", changed("model.layers.1.mlp.down_proj.weight", torch.zeros_like), True
    yield "a matrix one tenth larger", changed("model.layers.1.mlp.down_proj.weight", lambda t: t * 1.1), True
    yield "a tensor missing", {n: t for n, t in right.items() if n != "model.norm.weight"}, True
    for back, state in older.items():
        yield f"whole state {back} version(s) old", dict(state), False
        half = {n: (state if i % 2 else right)[n] for i, n in enumerate(right)}
        yield f"half of the tensors {back} version(s) old", half, False
        one = "model.layers.1.mlp.up_proj.weight"
        yield f"one tensor {back} version(s) old", {**right, one: state[one]}, False


# --- in the engine -------------------------------------------------------------------------------------------------


def engine_mutants() -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Ways not to load what has come: contexts of an engine, in which it goes that way.

    Each by the way that vLLM finds for a first version, and by the one that is followed from then on (`Route`).
    """

    def some(tensors: Any) -> Any:
        return iter([pair for pair in tensors if "layers.0" not in pair[0]])

    for name, keep in (("nothing loaded", lambda tensors: iter(())), ("a layer not loaded", some)):
        yield name, partial(_found, keep=keep)
        yield f"{name}, on a known way", partial(_followed, keep=keep)


@contextmanager
def _found(engine: Any, keep: Callable[[Any], Any]) -> Iterator[None]:
    load = transfer.load_tensors
    engine._arrivals._route = None
    transfer.load_tensors = lambda model, tensors: load(model, keep(tensors))
    try:
        yield
    finally:
        transfer.load_tensors = load


@contextmanager
def _followed(engine: Any, keep: Callable[[Any], Any]) -> Iterator[None]:
    assert engine._arrivals._route is not None
    usual: Any = Twin
    follow = usual._follow
    usual._follow = lambda twin, route, tensors: follow(twin, route, keep(tensors))
    try:
        yield
    finally:
        usual._follow = follow
