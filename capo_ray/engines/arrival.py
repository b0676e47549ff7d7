"""What an engine does with a version that comes, while it still serves: loads it beside and reads it in passing.

    expected(token) -------> Receiver --> checksums, twin --+
    load_weights(sealed handle) ----------------------------+--> compared with the manifest, then a swap

Nothing is judged here: the checksums are compared with a manifest that was announced, and the twin is taken only if
that manifest names the same tensors at the same places of the same memory.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from capo_ray.engines.route import Route
from capo_ray.engines.swap import in_process, verify_for
from capo_ray.engines.twin import Twin, can_have_twin, worker_model
from capo_ray.protocols import WeightsHandle
from capo_ray.weights import (
    CollectiveReceiver,
    Contents,
    Found,
    HostReceiver,
    Manifest,
    Meeting,
    Receiver,
    Seat,
    WeightsRefused,
    WireLost,
    as_bytes,
    read_manifest,
)

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

LOOK_S = 0.02
"""Between two looks at workers that receive by themselves."""
SWITCH_S = 2e-4
"""How long a thread that loads may keep the interpreter from the one that steps, which asks for it hundreds of times a
step; the usual 5 ms cost a swap 0.6 of a step."""

Between = Callable[[Callable[["LLMEngine"], Any]], Awaitable[Any]]
"""Calls something between two steps of the engine."""


class _QuickSwitches:
    """While threads are within, the interpreter changes hands every `SWITCH_S`; the last one out restores what was.

    The interval is the whole process's, and a version that was expected may still load when another one comes.
    """

    def __init__(self) -> None:
        self._lock, self._within, self._usual_s = threading.Lock(), 0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._usual_s = sys.getswitchinterval()
                sys.setswitchinterval(SWITCH_S)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                sys.setswitchinterval(self._usual_s)


QUICK_SWITCHES = _QuickSwitches()


@dataclass(slots=True)
class Arrival:
    """What is known of a version."""

    token: Any
    manifest: Manifest | None = None
    found: Found = field(default_factory=dict)
    """The checksum of the bytes from an offset on, so many of them."""
    came: list[tuple[Manifest, Found]] = field(default_factory=list)
    """What each worker of the engine was sent, by a transport that leaves no payload in host memory."""
    source: dict[str, Any] | None = None
    """Where workers find what was sent; None: in the payload."""
    twin: Twin | None = None
    failure: Exception | None = None
    """Why the twin could not be loaded: no fault of the layers that serve."""
    lost: WireLost | None = None
    """Why it did not come."""

    def verify(self, handle: WeightsHandle, contents: Contents, num_threads: int) -> Manifest:
        """As `swap.verify_for`, of what came to each worker."""
        if self.lost is not None:
            raise self.lost
        for came, found in self.came:
            verify_for(handle, contents, num_threads, found, came)
        if self.source is not None:
            self.source["manifest"] = handle.manifest
            return read_manifest(handle.manifest)
        return verify_for(handle, contents, num_threads, self.found)

    def twin_for(self, manifest: Manifest) -> Twin | None:
        """What was loaded beside, if it is what `manifest` says; raises what loading raised."""
        if self.manifest is None or self.manifest.places != manifest.places:
            return None
        if self.failure is not None:
            raise self.failure
        return self.twin


class Arrivals:
    """The version that is expected next, if any. On one event loop; `between`: as `VllmEngine._between_steps`."""

    def __init__(self, num_threads: int, between: Between, contents: Contents, *, beside: bool, tied: bool) -> None:
        self._num_threads, self._between = num_threads, between
        self.contents = contents
        self._beside, self._tied = beside, tied
        self._route: Route | None = None
        self._seat = Seat()
        self._coming: tuple[object, asyncio.Task[Arrival]] | None = None

    def expect(self, engine: LLMEngine, handle: WeightsHandle) -> None:
        """Begin on a version whose handle may not be sealed yet."""
        self._coming = _place(handle), asyncio.create_task(self._receive(engine, handle))

    async def of(self, engine: LLMEngine, handle: WeightsHandle) -> Arrival:
        """What is known of the handle's version, begun on now unless it was expected."""
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == _place(handle):
            return await coming[1]
        return await self._receive(engine, handle)

    async def _receive(self, engine: LLMEngine, handle: WeightsHandle) -> Arrival:
        """Reads and loads; a handle that cannot be read is left to whoever verifies it."""
        arrival = Arrival(handle.payload)
        try:
            if isinstance(handle.payload, Meeting):
                await self._meet(engine, arrival, handle.payload)
            else:
                receiver = HostReceiver(handle, self._num_threads)
                await asyncio.to_thread(self._take, self._model_beside(engine), arrival, receiver)
                arrival.found = receiver.found
        except WeightsRefused:
            pass
        except WireLost as error:
            arrival.lost = error
        return arrival

    async def _meet(self, engine: LLMEngine, arrival: Arrival, meeting: Meeting) -> None:
        """Receive at a meeting: here, or in each of the engine's worker processes."""
        if not in_process(engine):
            arrival.came = await self._meet_by_workers(meeting)
            arrival.source = {"received": meeting.version}
            return
        model = self._model_beside(engine)
        receiver = CollectiveReceiver(self._seat, meeting, keep=model is None)
        await asyncio.to_thread(self._take, model, arrival, receiver)
        arrival.came = [(receiver.manifest, receiver.found)]
        arrival.source = {"tensors": receiver.kept}

    async def _meet_by_workers(self, meeting: Meeting) -> list[tuple[Manifest, Found]]:
        """What each worker received, on a thread of its own: it serves on meanwhile."""
        contents = self.contents
        await self._between(lambda engine: engine.collective_rpc("begin_receiving", args=(asdict(meeting), contents)))
        while True:
            told = await self._between(lambda engine: engine.collective_rpc("received"))
            if all(one is not None for one in told):
                break
            await asyncio.sleep(LOOK_S)
        for _, _, lost in told:
            if lost:
                raise WireLost(lost)
        return [(read_manifest(manifest), dict(found)) for manifest, found, _ in told]

    def _model_beside(self, engine: LLMEngine) -> Any:
        """The model that can be loaded beside itself; None where there is no such."""
        if self._beside and in_process(engine) and can_have_twin(model := worker_model(engine)):
            return model
        return None

    def _take(self, model: Any, arrival: Arrival, receiver: Receiver) -> None:
        """Load the arrival's twin, where the model can have one, and see every tensor."""
        try:
            if model is not None:
                known = self._route
                if isinstance(receiver, HostReceiver) and known is not None:
                    # Of a version in buckets this is seen on the way.
                    known = known if known.sent == self.contents.loads(receiver.manifest) else None
                with QUICK_SWITCHES:
                    twin = Twin(model, tied=self._tied, route=known)
                    twin.load(self.contents.whole(receiver.take()))
                self._route = twin.route
                arrival.twin = twin
        except (WeightsRefused, WireLost):
            raise
        except Exception as error:  # noqa: BLE001 - raised by whoever takes the twin
            arrival.failure = error
        receiver.finish()
        arrival.manifest = receiver.manifest


def _place(handle: WeightsHandle) -> object:
    """What the version's bytes are told by: their meeting, or where they lie and how many they are.

    The same only for the same bytes, as long as they are held.
    """
    if isinstance(handle.payload, Meeting):
        return handle.payload
    try:
        array = as_bytes(handle.payload)
    except WeightsRefused:
        return (0, 0)
    return array.ctypes.data, array.nbytes
