"""The typed face of an actor: a call names a method of the actor's own class, which readers and mypy can follow.

    worker = spawn(RolloutWorker, options, spec)                        ActorHandle[RolloutWorker]
    ref = send(worker, RolloutWorker.generate, prompt_ids, sampling)    ObjectRef[tuple[Completion, ...]]

Arguments go by position. A reference among them is typed as what Ray puts in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar, TypeVarTuple, overload

import ray
from ray import ObjectRef
from ray.actor import ActorHandle


class PoolWorker(Protocol):
    """What a pool asks of the class of its actors."""

    async def start(self) -> int:
        """Ready to serve; the process id."""

    async def ping(self) -> dict[str, float]:
        """The worker's figures; raises if it is broken."""


W = TypeVar("W")
R = TypeVar("R")
First = TypeVar("First")
Second = TypeVar("Second")
Ts = TypeVarTuple("Ts")


def spawn(actor: Callable[[*Ts], W], options: Mapping[str, Any], *args: *Ts) -> ActorHandle[W]:
    """A new actor of this class; `options` are those of `ray.remote`."""
    made: Any = ray.remote(**options)(actor)
    handle: ActorHandle[W] = made.remote(*args)
    return handle


@overload
def send(
    actor: ActorHandle[W], method: Callable[[W, *Ts], Coroutine[Any, Any, R]], *args: *Ts, lane: str = ""
) -> ObjectRef[R]: ...


@overload
def send(actor: ActorHandle[W], method: Callable[[W, *Ts], R], *args: *Ts, lane: str = "") -> ObjectRef[R]: ...


def send(actor: ActorHandle[W], method: Callable[[W, *Ts], Any], *args: *Ts, lane: str = "") -> Any:
    """What the method will return; `lane`: the concurrency group that serves the call, where not the actor's first."""
    remote: Any = getattr(actor, method.__name__)
    return (remote.options(concurrency_group=lane) if lane else remote).remote(*args)


def send_for_two(
    actor: ActorHandle[W], method: Callable[[W, *Ts], tuple[First, Second]], *args: *Ts
) -> tuple[ObjectRef[First], ObjectRef[Second]]:
    """Both parts of what the method will return, each by itself: the one is awaited here, the other handed on."""
    remote: Any = getattr(actor, method.__name__)
    first, second = remote.options(num_returns=2).remote(*args)
    return first, second
