"""A process of one's own: a handle that stays its own, its end, its processor time and its wait for a core."""

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


def held_seconds(pid: int) -> float:
    """Seconds for which a process's main thread could run but no core was free; 0 where that cannot be read."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
