"""A process of one's own: a handle that stays its own, its end, and the processor time it has used."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def open_pid(pid: int) -> int:
    """A handle of a process that stays its own even when the number is given to another one."""
    return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else pid


def close_pid(handle: int) -> None:
    """Give back a handle."""
    if hasattr(os, "pidfd_open"):
        os.close(handle)


def kill(handle: int) -> None:
    """Kill the process of a handle."""
    with suppress(OSError):  # gone already: what was wanted
        if hasattr(signal, "pidfd_send_signal"):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        else:
            os.kill(handle, signal.SIGKILL)


def cpu_seconds(pid: int) -> float:
    """Processor seconds a process has used; infinite where that cannot be read, so that its time is up."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
