"""One engine at the other end of a sender in this process: a version in buckets, and versions gone wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from capo_ray.learners.store import listen, reserve_meeting
from capo_ray.protocols import WeightsHandle
from capo_ray.weights import Canary, CollectiveSender, Manifest, Meeting, Onto, Witness, read_manifest

State = Mapping[str, torch.Tensor]
Write = Callable[[str, str, list[int], torch.Tensor], None]


def _same(anything: Any) -> Any:
    return anything


class Wire:
    """A sender, and the group that it is in with each worker of one engine, kept from version to version."""

    def __init__(self, engine: Any, *, bucket_bytes: int = 1 << 18, deadline_s: float = 30.0) -> None:
        self._engine = engine
        self._members = 1 + int(engine.spec.tensor_parallel)
        self._bucket_bytes, self._deadline_s = bucket_bytes, deadline_s
        self._sender = CollectiveSender(listen)
        self.address = reserve_meeting("127.0.0.1")

    def publish(
        self,
        sent: State,
        version: int,
        canary: Canary | None,
        held: State | None = None,
        *,
        on_the_way: Callable[[Write], Write] = _same,
        announced: Callable[[WeightsHandle], WeightsHandle] = _same,
        onto: Onto | None = None,
    ) -> int:
        """The version that the engine holds afterwards; `held`: what the model holds, where it is not what is sent.

        `on_the_way` and `announced` change what comes and what is said of it; `onto`: where it is adapters alone.
        """
        meeting = Meeting(self.address, self._members, "gloo", version, self._deadline_s, self._bucket_bytes)
        sender, witness = self._sender, Witness(onto=onto)
        sender.__dict__["_write"] = on_the_way(CollectiveSender._write.__get__(sender))

        def send() -> None:
            sender.meet(meeting)
            sender.begin(version)
            for name, tensor in sent.items():
                sender.add({name: tensor})
            sender.gathered()

        async def both() -> int:
            self._engine.expect_weights(WeightsHandle(version, "", meeting))
            await asyncio.to_thread(send)
            assert not sender.failure, sender.failure
            witness.begin(version)
            witness.add(sent if held is None else held)
            now_held: int = await self._engine.load_weights(announced(sender.seal(witness, canary)))
            return now_held

        return asyncio.run(both())


@dataclass(frozen=True, slots=True)
class Mutant:
    """A publish gone wrong: what is sent, how it is changed on its way, and what is announced of it."""

    name: str
    sent: State
    on_the_way: Callable[[Write], Write] = _same
    announced: Callable[[WeightsHandle], WeightsHandle] = _same


def wire_mutants(right: State, old: State, old_manifest: Manifest) -> Iterator[Mutant]:
    """What comes, or is announced, in place of version `right`; `old_manifest` is a whole one of an older version."""
    up = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    swapped = {up[0]: up[1], up[1]: up[0]}

    def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> State:
        return {**right, name: change(right[name]).contiguous()}

    def flip(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        copy.view(torch.uint8)[0] ^= 1
        return copy

    def without(write: Write) -> Write:
        return lambda name, *rest: None if name == up[0] else write(name, *rest)

    def cut(write: Write) -> Write:
        return lambda name, dtype, shape, flat: write(name, dtype, shape, flat[:-64] if name == up[0] else flat)

    def renamed(write: Write) -> Write:
        return lambda name, *rest: write(swapped.get(name, name), *rest)

    def resealed(change: Callable[[Manifest], Manifest]) -> Callable[[WeightsHandle], WeightsHandle]:
        return lambda handle: replace(handle, manifest=change(read_manifest(handle.manifest)).to_json())

    def rename(of: Manifest) -> Manifest:
        return replace(of, tensors=tuple(replace(e, name=swapped.get(e.name, e.name)) for e in of.tensors))

    yield Mutant("one bit flipped", changed("model.norm.weight", flip))
    yield Mutant("rows permuted", changed("model.embed_tokens.weight", lambda t: t.roll(1, 0)))
    yield Mutant("a tensor zeroed", changed(up[0], torch.zeros_like))
    yield Mutant("two tensors of one shape swapped", {n: right[swapped.get(n, n)] for n in right})
    yield Mutant("half of the tensors old", {n: (old if i % 2 else right)[n] for i, n in enumerate(right)})
    yield Mutant("all of the tensors old", dict(old))
    yield Mutant("a tensor lost on the way", right, without)
    yield Mutant("a tensor cut on the way", right, cut)
    yield Mutant("names swapped on the way", right, renamed)
    yield Mutant("tensors in another order, announced in the first", right, announced=resealed(_turned))
    yield Mutant("names of two tensors swapped, resealed", right, announced=resealed(rename))
    yield Mutant("canary taken out, resealed", right, announced=resealed(lambda m: replace(m, canary=None)))
    yield Mutant("manifest truncated", right, announced=lambda h: replace(h, manifest=h.manifest[:-20]))
    yield Mutant("an older manifest", right, announced=lambda h: replace(h, manifest=old_manifest.to_json()))


def _turned(of: Manifest) -> Manifest:
    return replace(of, tensors=tuple(reversed(of.tensors)))
