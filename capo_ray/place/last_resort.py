"""The last resort: a process that has said its last word and still does not end is ended."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from types import FrameType


def where_it_hangs() -> str:
    """The main thread's place, as `file:line function` of our own innermost frame and of what it called."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return _place(frame, always=True) or "the interpreter's own end"


def where_others_are() -> str:
    """The places of all threads but this one that are in code of ours."""
    others = (frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident())
    return "; ".join(dict.fromkeys(place for frame in others if (place := _place(frame))))


def _place(frame: FrameType | None, always: bool = False) -> str:
    """Our own innermost frame and the innermost of all; nothing where none is ours, unless `always`."""
    frames = traceback.extract_stack(frame) if frame is not None else []
    ours = [f for f in frames if "capo_ray" in f.filename]
    shown = [*ours[-1:], *frames[-1:]] if ours or always else []
    return ", ".join(dict.fromkeys(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in shown))


def force_exit_after(seconds: float, code: int, words: str = "") -> threading.Timer:
    """A started timer that ends this process with `code`, whatever else it waits for; cancel it if it may live.

    `words` go to standard error first, `{place}` in them being where the main thread is then. Nothing else is run:
    files must be whole whenever this may strike, as the ledger's and the checkpoints' are.
    """

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):
            if words:
                print(words.replace("{place}", where_it_hangs()), file=sys.stderr)
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer
