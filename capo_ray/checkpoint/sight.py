"""Whether processes on other nodes see the driver's directory: each leaves a word in it, and the driver reads it back.

with meeting_place(run_dir) as place:      driver: an empty directory
    leave_word(place, name)                every process: its host name into a file of this name
    require_seen(place, hosts)             driver: RunFailed naming the hosts whose file it does not find
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from capo_ray.protocols import RunFailed

SIGHT_S = 20.0
"""How long a network file system may take to show what another node wrote."""


@contextlib.contextmanager
def meeting_place(directory: Path) -> Iterator[Path]:
    """A new empty directory in `directory`, removed afterwards."""
    place = Path(tempfile.mkdtemp(prefix=".sight-", dir=directory))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def leave_word(place: Path, name: str) -> str:
    """This process's host name, also written to `place`/`name` where that directory is seen: it is never made here."""
    host = socket.gethostname()
    with contextlib.suppress(OSError), (place / name).open("w", encoding="utf-8") as file:
        file.write(host)
        file.flush()
        os.fsync(file.fileno())
    return host


def unseen(place: Path, hosts: Sequence[str], deadline_s: float = SIGHT_S) -> list[str]:
    """Those of the hosts that answered whose words are not all in `place`, sorted; [] where all are."""
    ends = time.monotonic() + deadline_s
    while True:
        missing = list(hosts)
        for file in os.scandir(place):
            word = Path(file.path).read_text(encoding="utf-8")
            if word in missing:
                missing.remove(word)
        if not missing or time.monotonic() > ends:
            return sorted(set(missing))
        time.sleep(0.1)


def require_seen(place: Path, hosts: Sequence[str], deadline_s: float = SIGHT_S) -> None:
    """Raises `RunFailed` naming the hosts that do not write where the driver reads."""
    if missing := unseen(place, hosts, deadline_s):
        raise RunFailed(
            f"expected the run directory {place.parent} to be seen by every learner rank, but what "
            f"{', '.join(missing)} wrote there is not to be found on {socket.gethostname()}; put run.dir on a file "
            f"system that all nodes share, writable by all"
        )
