"""One call to one actor: awaited with a deadline, and every way to lose it told by two exceptions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from capo_ray.protocols import PartLost, PartTimeout, RunFailed

R = TypeVar("R")


class ActorGone(PartLost):
    """The actor's process died, or what led to it did."""


async def await_ref(ref: ray.ObjectRef[R], deadline_s: float, what: str) -> R:
    """The value behind a reference; `PartTimeout` names `what` after `deadline_s`, `ActorGone` when its actor died.

    The actor's own exception is raised as itself, with its place in the actor noted.
    """
    answer = ref.future()
    told = asyncio.wrap_future(answer)
    try:
        await asyncio.wait({told}, timeout=deadline_s)
        # Asked of the answer itself: a loop that stood still has not been told yet of one that came in time.
        if not answer.done():
            raise PartTimeout(f"{what} did not answer within {deadline_s:.0f} s")
        return answer.result()
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if cause is not error:
            cause.add_note(str(error))  # where in the actor it was raised
        raise cause from None
    except RayError as error:
        raise ActorGone(f"{what} was lost: {one_line(error)}") from error
    except (PartTimeout, asyncio.CancelledError):
        cancel(ref)
        raise
    finally:
        if told.done() and not told.cancelled():
            told.exception()  # seen: asyncio would print it as never retrieved
        told.cancel()


async def within(seconds: float, key: str, work: Awaitable[R], what: str, advice: str) -> R:
    """The result of `work`; `RunFailed` says after `seconds` what was waited for, how long, and what to do.

    `key` is the setting that gives the limit, where there is one. A thread that `work` waits for is left behind.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            limit = f"{key}={seconds:g} s" if key else f"{seconds:g} s"
            raise RunFailed(f"{what} did not end within {limit}; {advice}")
        return task.result()
    finally:
        task.cancel()


def cancel(ref: ray.ObjectRef[Any]) -> None:
    """Stop a call that nobody waits for any more; nothing where its actor is gone."""
    with contextlib.suppress(RayError, ValueError, RuntimeError):
        ray.cancel(ref, force=False)


def end_actor(handle: ActorHandle[Any] | None) -> None:
    """Kill an actor; nothing where it is gone, or the cluster with it."""
    with contextlib.suppress(RayError, ValueError, RuntimeError):
        if handle is not None:
            ray.kill(handle)


def one_line(error: BaseException) -> str:
    """The class and the first words of an exception."""
    words = " ".join(str(error).split())[:400]
    known = isinstance(error, PartLost | PartTimeout | RayError)
    return words if known and words else f"{type(error).__name__}: {words}"
