"""What an engine does with a payload that has come, while it still serves: loads it beside and reads it in passing.

    expected(payload) ----> checksums, twin --+
    load_weights(sealed handle) --------------+--> compared with the manifest, then a swap

Nothing is judged here: the checksums are compared with a manifest that was announced, and the twin is taken only if
that manifest names the same tensors at the same places of the same memory.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capo_ray.engines.route import Route
from capo_ray.engines.swap import in_process
from capo_ray.engines.twin import Twin, can_have_twin, worker_model
from capo_ray.protocols import WeightsHandle
from capo_ray.weights import Found, HostReceiver, Manifest, Receiver, WeightsRefused, as_bytes

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine


@dataclass(slots=True)
class Arrival:
    """What is known of a payload."""

    payload: Any
    manifest: Manifest | None = None
    found: Found = field(default_factory=dict)
    """The checksum of the bytes from an offset on, so many of them."""
    twin: Twin | None = None
    failure: Exception | None = None
    """Why the twin could not be loaded: no fault of the layers that serve."""

    def twin_for(self, manifest: Manifest) -> Twin | None:
        """What was loaded beside, if it is what `manifest` says; raises what loading raised."""
        if self.manifest is None or self.manifest.places != manifest.places:
            return None
        if self.failure is not None:
            raise self.failure
        return self.twin


class Arrivals:
    """The payload that is expected next, if any. On one event loop."""

    def __init__(self, num_threads: int, *, beside: bool, tied: bool) -> None:
        self._num_threads, self._beside, self._tied = num_threads, beside, tied
        self._route: Route | None = None
        self._coming: tuple[tuple[int, int], asyncio.Task[Arrival]] | None = None

    def expect(self, engine: LLMEngine, handle: WeightsHandle) -> None:
        """Begin on a payload whose handle may not be sealed yet."""
        self._coming = _place(handle), asyncio.create_task(self._receive(engine, handle))

    async def of(self, engine: LLMEngine, handle: WeightsHandle) -> Arrival:
        """What is known of the handle's payload, begun on now unless it was expected."""
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == _place(handle):
            return await coming[1]
        return await self._receive(engine, handle)

    async def _receive(self, engine: LLMEngine, handle: WeightsHandle) -> Arrival:
        """Reads and loads; a handle that cannot be read is left to whoever verifies it."""
        arrival = Arrival(handle.payload)
        try:
            receiver = HostReceiver(handle, self._num_threads)
            await asyncio.to_thread(self._take, engine, arrival, receiver)
            arrival.manifest, arrival.found = receiver.manifest, receiver.found
        except WeightsRefused:
            pass
        return arrival

    def _take(self, engine: LLMEngine, arrival: Arrival, receiver: Receiver) -> None:
        """Load the arrival's twin, where the model can have one, and see every tensor."""
        try:
            if self._beside and in_process(engine) and can_have_twin(model := worker_model(engine)):
                known = self._route if self._route is not None and self._route.fits(receiver.manifest) else None
                twin = Twin(model, tied=self._tied, route=known)
                twin.load(receiver.take())
                self._route = twin.route
                arrival.twin = twin
        except WeightsRefused:
            raise
        except Exception as error:  # noqa: BLE001 - raised by whoever takes the twin
            arrival.failure = error
        receiver.finish()


def _place(handle: WeightsHandle) -> tuple[int, int]:
    """Where the payload lies and how long it is; the same only for the same bytes, as long as they are held."""
    try:
        array = as_bytes(handle.payload)
    except WeightsRefused:
        return (0, 0)
    return array.ctypes.data, array.nbytes
