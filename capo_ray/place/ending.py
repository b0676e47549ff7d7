"""How a run is asked to end, and that it does: signals first ask, then end; an end that hangs is cut off.

SIGTERM, Ctrl-C --first--> save a checkpoint (within run.stop_grace_s) and leave
                --second, or the grace is over--> cancel: leave with what is saved
any failure --> `ends_soon_after_failure`: everything is closed within END_S, or the process ends all the same
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from capo_ray.place.last_resort import force_exit_after

END_S = 45.0
"""From the failure of a run (after its checkpoint) to the end of its process, whatever hangs."""


class Ending:
    """The signals of one run."""

    def __init__(self, grace_s: float) -> None:
        self.signum: int | None = None
        self.ask: Callable[[str], bool] = lambda reason: False
        """Asks whatever runs to save and end; False where there is nothing to wait for."""
        self._grace_s = grace_s

    def watch(self) -> None:
        """Handle SIGTERM and Ctrl-C from now on for the present task; Ray's own handler would just exit.

        In the main thread alone, which Python gives signals to: in another one they are for whoever has that.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._heed, signum, task)

    def _heed(self, signum: int, task: asyncio.Task[object]) -> None:
        first, self.signum = self.signum is None, signum
        if first and self.ask(f"asked to end by {signal.Signals(signum).name}"):
            print(
                f"capo-ray: {signal.Signals(signum).name}: saving a checkpoint first, for at most "
                f"run.stop_grace_s={self._grace_s:g} s; once more ends at once",
                file=sys.stderr,
                flush=True,
            )
            asyncio.get_running_loop().call_later(self._grace_s, task.cancel)
        else:
            task.cancel()

    def seen_in(self, error: BaseException) -> signal.Signals | None:
        """The signal that a run's exception stands for; None where it failed by itself."""
        stopped = isinstance(error, asyncio.CancelledError | KeyboardInterrupt)
        return signal.Signals(self.signum or signal.SIGINT) if stopped else None


@contextlib.contextmanager
def ends_soon_after_failure(timers: list[threading.Timer], ending: Ending, command: str = "train") -> Iterator[None]:
    """Whatever leaves this block by an exception has END_S to leave the process; the timer is added to `timers`."""
    try:
        yield
    except BaseException as error:
        signum = ending.seen_in(error)
        cause = f"asked to end ({signum.name})" if signum else " ".join(str(error).split()) or type(error).__name__
        words = f"capo-ray {command}: {cause} (its end hung for {END_S:g} s at {{place}} and was cut off)"
        timers.append(force_exit_after(END_S, 128 + signum if signum else 1, words))
        raise
