"""Checkpoints of a run while it goes on: copied at one moment, written beside training, one at a time.

    begin: wait for the one before -> counters, cursor, groups under way -> ranks copy to host memory -> (goes on)
    write:                                    ranks write and hash their own files -> driver finds each -> sealed

Invariant: counters, cursor, outstanding groups and shards are of one moment; a copy of another version than the
counters say is not written. Nothing is read, hashed or written on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from capo_ray.checkpoint import Draft
from capo_ray.flow.parts import Parts, SftParts
from capo_ray.flow.state import RunState, SftState
from capo_ray.protocols import PartLost, RunFailed
from capo_ray.runs.layout import LEARNER_DIR, POLICY_DIR, REWARD_MODEL_DIR, STATE_FILE


class Saver:
    """The one who writes a run's checkpoints; `saved` is the newest version that is whole.

    `moment` tells all else that a resume has to know, as JSON; `check` raises where what stands beside the checkpoints
    is not whole.
    """

    def __init__(
        self,
        parts: Parts | SftParts,
        state: RunState | SftState,
        moment: Callable[[], dict[str, Any]],
        on_failure: Callable[[], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._parts, self._state, self._moment, self._on_failure = parts, state, moment, on_failure
        self._check = check
        self.saved = state.version
        self._writing: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def begin(self) -> None:
        """Returns once a copy of this moment is held; training may go on while it is written."""
        await self.settle()
        parts, version = self._parts, self._state.version
        payload = self._moment()
        copies = [parts.learner.snapshot()]
        if parts.reward_model is not None:
            copies.append(parts.reward_model.snapshot())
        held = await asyncio.gather(*copies)
        if any(copy != version for copy in held):
            raise RunFailed(f"expected learners of version {version} for its checkpoint, got {held}; not saved")
        self._writing = asyncio.create_task(self._write(version, payload), name=f"checkpoint {version}")
        self._writing.add_done_callback(self._note)

    async def settle(self) -> None:
        """Returns once nothing is being written; raises the failure of what was."""
        if self._writing is not None:
            await asyncio.wait({self._writing})
            self._writing = None
        self.raise_if_failed()

    def raise_if_failed(self) -> None:
        """Raise the failure of a checkpoint that was written meanwhile."""
        if self._failure is not None:
            raise self._failure

    async def save_last(self) -> None:
        """Returns once a checkpoint holds the last update."""
        await self.settle()
        if self._state.version > self.saved:
            self._parts.progress.update(phase="checkpoint")
            await self.begin()
            await self.settle()

    async def rescue(self, cause: BaseException, update: asyncio.Future[Any] | None) -> None:
        """Keep what a failed run has done, where the learner still answers; else note at `cause` what is lost.

        `update` is the last one begun: it is waited for, and where it failed itself, half of it is with the learner.
        """
        try:
            async with asyncio.timeout(self._parts.config.run.stop_grace_s):
                if update is not None:
                    await asyncio.wait({update})
                half = update is not None and update.exception() is not None
                if half or cause is self._failure:  # another checkpoint would fare no better
                    await self.settle()
                else:
                    await self.save_last()
        except Exception as error:  # noqa: BLE001 the run's own failure is told, this one beside it
            if error is not cause:
                why = "its learner is lost" if isinstance(error.__cause__, PartLost) else repr(error)
                cause.add_note(f"no checkpoint of version {self._state.version} could be saved: {why}")

    def _note(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
            self._on_failure()

    async def _write(self, version: int, payload: dict[str, Any]) -> None:
        parts, store = self._parts, self._parts.checkpoints
        folders = [LEARNER_DIR, POLICY_DIR, *([REWARD_MODEL_DIR] if parts.reward_model is not None else [])]
        draft = None
        try:
            async with asyncio.timeout(parts.config.run.checkpoint_deadline_s):
                draft = await asyncio.to_thread(store.begin, version, folders)
                await self._fill(draft, payload)
                await asyncio.to_thread(self._check)
                await asyncio.to_thread(store.seal, draft)
        except TimeoutError as error:
            raise RunFailed(
                f"checkpoint {version} was not written within run.checkpoint_deadline_s="
                f"{parts.config.run.checkpoint_deadline_s:g}; look at the file system of {store.directory}"
            ) from error
        except Exception as error:
            if draft is not None:
                await asyncio.to_thread(store.abandon, draft)
            if isinstance(error, OSError):
                raise RunFailed(
                    f"checkpoint {version} could not be written to {store.directory}: {error.strerror or error}; the "
                    f"one before is whole: make room or mend the file system"
                ) from error
            raise
        self.saved = version

    async def _fill(self, draft: Draft, payload: dict[str, Any]) -> None:
        """All files of a checkpoint, in its draft and noted there."""
        parts = self._parts
        learner = [(LEARNER_DIR, parts.learner.save), (POLICY_DIR, parts.learner.export)]
        for folder, write in learner:
            draft.add(folder, await write(str(draft.directory / folder)))
        if parts.reward_model is not None:
            draft.add(REWARD_MODEL_DIR, await parts.reward_model.save(str(draft.directory / REWARD_MODEL_DIR)))
        await asyncio.to_thread(draft.write, STATE_FILE, payload)
