"""Whether the cluster is still there: asked on threads of their own, since Ray's calls wait when it is not.

    asker  -- ray.nodes() --> the head          stamps the clock at every answer; sees this node's own raylet
    judge  -- reads the clock                   a head that is silent for `cluster.deadline_s`, or a dead raylet: lost

Ray itself aborts a process that has lost the head for long, without a sentence; a driver whose raylet died waits for
ever. Once the cluster is lost `guard` ends the run with the cause, and the process is gone `LAST_RESORT_S` later.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

import ray

from capo_ray.config import Job
from capo_ray.place.calls import one_line
from capo_ray.place.last_resort import force_exit_after
from capo_ray.protocols import RunFailed

ASK_EVERY_S = 3.0
LOOK_EVERY_S = 0.5
GRACE_S = 5.0
"""How long the work may take to leave once the cluster is lost."""
LAST_RESORT_S = 15.0

T = TypeVar("T")


class ClusterWatch:
    """Use as a context, in the loop of the work that is guarded."""

    def __init__(self, config: Job) -> None:
        self.deadline_s = config.cluster.deadline_s
        self.cause = ""
        """Why the cluster counts as lost; empty while it does not."""
        self._over = threading.Event()

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, or `RunFailed` with the cause as soon as the cluster is lost."""
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._lost}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            return await task  # the end of what was cancelled is the end of this
        if not self.cause:
            return task.result()
        task.cancel()
        await asyncio.wait({task}, timeout=GRACE_S)
        raise RunFailed(self.cause)

    def __enter__(self) -> ClusterWatch:
        self._loop = asyncio.get_running_loop()
        self._lost = self._loop.create_future()
        self._heard = time.monotonic()
        self._silence = ""
        self._node = ray.get_runtime_context().get_node_id()
        for name, work in (("asks the cluster", self._ask), ("watches the cluster", self._judge)):
            threading.Thread(target=work, name=name, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    def _ask(self) -> None:
        while not self._over.wait(ASK_EVERY_S):
            try:
                alive = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer; the judge counts the seconds
                self._silence = f": {one_line(error)}"
                continue
            self._heard = time.monotonic()
            if not alive.get(self._node, True):
                self._lose("this node's Ray (its raylet) is gone: its workers are lost, and no others can start here")

    def _judge(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            if time.monotonic() - self._heard > self.deadline_s:
                self._lose(
                    f"the cluster's head (GCS) did not answer for cluster.deadline_s={self.deadline_s:g}{self._silence}"
                )

    def _lose(self, cause: str) -> None:
        """Tell the loop; nothing if it has been told."""
        if self.cause or self._over.is_set():
            return
        self.cause = f"{cause}; look at the Ray session's logs, and go on with resume= once Ray is there again"
        # Armed for good: Ray's own leaving waits for what is not there any more.
        force_exit_after(GRACE_S + LAST_RESORT_S, 1, f"capo-ray: {self.cause}")
        self._loop.call_soon_threadsafe(self._lost.set_result, None)
