"""What a published version of the weights takes on its way: shared memory and time."""

from __future__ import annotations

import os

MIB = 1 << 20
VERSIONS_IN_STORE = 2
"""Engines may still read one version while the next is written."""
STORE_HEADROOM_BYTES = 256 * MIB
"""For everything else that travels: batches, responses, reports."""
LEAST_STORE_BYTES = 80 * MIB
"""Ray refuses less than 75 MiB."""
SHM_FRAC = 0.9
"""Ray moves its whole store to a file on disk where it is asked for more than /dev/shm has."""
DEADLINE_BASE_S = 120.0
DEADLINE_BYTES_PER_S = 100e6
"""A floor: one network link of 1.5 GB/s, a checksum at 2 GB/s and a load at 1 GB/s are together five times as fast."""


def store_bytes(version_bytes: int | None, shm_bytes: int) -> int:
    """The object store that holds two versions of `version_bytes` and the rest, as far as /dev/shm has room."""
    wanted = VERSIONS_IN_STORE * (version_bytes or 0) + STORE_HEADROOM_BYTES
    return min(wanted, max(int(SHM_FRAC * shm_bytes), LEAST_STORE_BYTES))


def shm_bytes() -> int:
    """The size of /dev/shm, in which Ray keeps its objects; 0 where there is none."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return stat.f_frsize * stat.f_blocks


def transfer_deadline_s(num_bytes: int) -> float:
    """The seconds for engines to take and prove a version of `num_bytes`."""
    return DEADLINE_BASE_S + num_bytes / DEADLINE_BYTES_PER_S
