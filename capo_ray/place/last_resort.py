"""The last resort: a process that has said its last word and still does not end is ended."""

from __future__ import annotations

import contextlib
import os
import sys
import threading


def force_exit_after(seconds: float, code: int, words: str = "") -> threading.Timer:
    """A started timer that ends this process with `code`, whatever else it waits for; cancel it if it may live.

    `words` go to standard error first. Nothing else is run: files must be whole whenever this may strike, as the
    ledger's and the checkpoints' are.
    """

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):
            if words:
                print(words, file=sys.stderr)
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer
