"""What a person watches: a live page on a terminal, one plain line now and then in a log.

A terminal that cannot be written to never ends a run: the live page falls back to lines, lines to silence.
"""

from __future__ import annotations

import io
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from capo_ray.metrics.pace import Pace
from capo_ray.metrics.page import draw

MAX_DISPLAY_ERRORS = 3


class _Console(Console):
    """A console whose reader may leave: rich would end the program then, and the run with it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Screen:
    """Progress of a run (`flow.parts.Progress`); a context manager, `update` may also be called outside of it."""

    def __init__(self, title: str, num_updates: int = 0, stream: TextIO | None = None, every_s: float = 5.0) -> None:
        stream = stream or sys.stdout
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without our characters shows `?` and not an error
        self._console = _Console(file=stream, highlight=False, soft_wrap=True)
        self._title = title
        self._every_s = every_s
        self._live: Live | None = None
        self._num_errors = 0
        self._started = time.monotonic()
        self._last_line = -float("inf")
        self._figures: dict[str, Any] = {
            "phase": "starting",
            "update": 0,
            "num_updates": num_updates,
            "queues": {},
            "idle": {},
        }
        self._pace = Pace()
        self._rewards: deque[float] = deque(maxlen=40)
        self._held_out: deque[float] = deque(maxlen=40)
        self._has_blocks = self._console.encoding.lower().startswith("utf")
        self._spinner: Spinner | None = Spinner("dots" if self._has_blocks else "line", style="cyan")

    def update(self, **figures: Any) -> None:
        """Show `phase`, `update`, `num_updates`, `queues`, `judged` (a response: question, verdict, steps with weights)
        and the figures of `page.ROWS` as given. What is not given, or None, stays as it was.
        """
        given = {name: value for name, value in figures.items() if value is not None}
        if "update" in given:
            self._pace.ended(given["update"])
        if "phase" in given:
            self._pace.entered(given["phase"])
        for name, history in (("reward", self._rewards), ("held_out", self._held_out)):
            if name in given:
                history.append(given[name])
        phase_before = self._figures["phase"]
        given["idle"] = self._figures["idle"] | given.get("idle", {})  # workers tell every few seconds
        self._figures.update(given)
        if self._live is None:
            news = "held_out" in given or (
                given.get("phase", phase_before) != phase_before and not self._figures["update"]
            )
            self._print_line(now=news)

    def final_table(self, rows: Mapping[str, object] | Sequence[tuple[str, object]]) -> None:
        """End the live page, which stays, and print name and value of each row."""
        self._figures["phase"] = "done"
        self._stop_live()
        pairs = list(rows.items()) if isinstance(rows, Mapping) else list(rows)
        if not self._console.is_terminal:
            width = max((len(name) for name, _ in pairs), default=0)
            self._show("\n".join(f"{name:<{width}}  {_to_text(value)}" for name, value in pairs))
            return
        table = Table(title=self._title, title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in pairs:
            table.add_row(name, Text(_to_text(value)))
        self._show(table)

    def __enter__(self) -> Screen:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            try:
                self._live = Live(console=self._console, get_renderable=self._page, refresh_per_second=4)
                self._live.start()
            except Exception:  # noqa: BLE001 - an odd terminal; counted, and the run shows lines instead
                self._num_errors += 1
                self._live = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_live()

    def _stop_live(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            self._spinner = None
            try:
                live.stop()
            except Exception:  # noqa: BLE001 - as above
                self._num_errors += 1

    def _show(self, what: RenderableType) -> None:
        """Print, unless printing has failed too often."""
        if self._num_errors >= MAX_DISPLAY_ERRORS:
            return
        try:
            self._console.print(what)
        except Exception:  # noqa: BLE001 - a closed pipe, an encoding without this character; counted
            self._num_errors += 1

    def _print_line(self, now: bool) -> None:
        clock = time.monotonic()
        if not now and clock - self._last_line < self._every_s:
            return
        self._last_line = clock
        self._show(Text(self._line()))

    def _line(self) -> str:
        f = self._figures
        parts = [f"[{_clock(self._elapsed())}]", f"update {f['update']}/{f['num_updates'] or '?'}", f"{f['phase']}"]
        parts += [f"{name}={f[name]:.3f}" for name in ("loss", "reward", "held_out", "agreement") if name in f]
        parts += [f"{name}={count}" for name, count in f["queues"].items()]
        return "  ".join([*parts, *filter(None, [self._left()])])

    def _page(self) -> RenderableType:
        """The live page; drawn by a thread of its own, where an error would end the drawing."""
        try:
            return self._build_page()
        except Exception:  # noqa: BLE001 - counted; the line says the same
            self._num_errors += 1
            return Text(self._line())

    def _build_page(self) -> RenderableType:
        courses = {"held_out": self._held_out, "reward": self._rewards}
        clock = _clock(self._elapsed()) + (f"   {left}" if self._spinner and (left := self._left()) else "")
        return draw(self._figures, courses, self._title, clock, self._spinner, self._has_blocks)

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _left(self) -> str:
        """The time left as a range; empty before there is a pace."""
        left = self._pace.left_s(self._figures["num_updates"])
        if left is None:
            return ""
        least, most = map(_clock, left)
        return f"left {least}" if least == most else f"left {least} to {most}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _to_text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
