"""A count of lines done, for a person who waits."""

from __future__ import annotations

import sys
import time

QUIET_S = 2.0
REDRAWN_S = 0.5


class LineCount:
    """A count on standard error after `QUIET_S`, where that is a terminal which does not show the lines themselves."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._start = self._last = time.monotonic()
        self._done = 0
        self._shown = False
        self._watched = sys.stderr.isatty() and not sys.stdout.isatty()

    def count(self) -> None:
        """One more line is done."""
        self._done += 1
        now = time.monotonic()
        if self._watched and now - self._start > QUIET_S and now - self._last > REDRAWN_S:
            self._last, self._shown = now, True
            sys.stderr.write(f"\r{self._done} lines {self._verb}, {self._done / (now - self._start):.0f}/s ")
            sys.stderr.flush()

    def end(self) -> None:
        """Leaves the count's line."""
        if self._shown:
            sys.stderr.write("\n")
