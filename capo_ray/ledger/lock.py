"""One driver per run directory: a lock that dies with its holder, so nothing is left to clean up after kill -9."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType

from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import LOCK_FILE


class RunBusy(RunFailed):
    """Another driver holds the run directory."""


class RunLock:
    """The right to write into a run directory, held from `acquire` (or `with`) to `release` or the process's end."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK_FILE
        self._fd: int | None = None

    def acquire(self) -> RunLock:
        """This lock, held; raises `RunBusy` at once, naming the holder, when another driver has it."""
        if self._fd is not None:
            raise RuntimeError(f"{self._path} is already held by this very lock; release it first")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "unknown process"
            os.close(fd)
            raise RunBusy(
                f"run directory {self._path.parent} is in use by another driver ({holder}); "
                f"wait for it, end it, or choose another run.name"
            ) from None
        except OSError as error:
            os.close(fd)
            raise RunFailed(
                f"expected a file system with locks (flock) for the run directory {self._path.parent}, got: "
                f"{error.strerror or error}; mount it with locks (Lustre: -o flock, NFS: version 4) or set run.dir "
                f"elsewhere: without one, two drivers could write into one run"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._fd = fd
        # A flock belongs to the open file, which a forked child shares: without this an orphan would keep it.
        os.register_at_fork(after_in_child=self._forget)
        return self

    def release(self) -> None:
        """Let the next driver in; a second call does nothing."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    def _forget(self) -> None:
        """Close the child's copy of the file; the parent's lock stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> RunLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
