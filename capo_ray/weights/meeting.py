"""Who sends a version to whom at once: a process group of the learner's rank 0 and every engine process.

    driver: Meeting --told to all--> rank 0 listens, member 0 | engines come, `seats` counts them | group, kept

A group of its own beside those that learner and engine have: no process of either side is in the other's.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

Backend = Literal["gloo", "nccl"]


class WireLost(RuntimeError):
    """The group did not come together, or a member of it is gone or late."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where a version is sent: the token of a collective transport."""

    address: str
    """`tcp://host:port` of the store; one to a group."""
    num_members: int
    """Of the group, the sender included."""
    backend: Backend
    version: int
    deadline_s: float
    """For each wait, and for the group to come together."""
    bucket_bytes: int
    delta_frac: float = 0.0
    """Most of a tensor's values that may have changed for these alone to be sent; 0: all is sent, and no end keeps a
    copy of the version before."""

    @property
    def timeout(self) -> datetime.timedelta:
        """The deadline as torch takes it."""
        return datetime.timedelta(seconds=self.deadline_s)
