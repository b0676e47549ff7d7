"""Where the ranks of a group meet."""

from __future__ import annotations

import datetime
import socket
import threading
from urllib.parse import urlsplit

import pytest

from capo_ray.learners.store import build_store, reserve_meeting

SOON = datetime.timedelta(seconds=20)


def test_the_port_that_ranks_are_told_belongs_to_nobody_else_until_they_meet() -> None:
    address = reserve_meeting("127.0.0.1")
    place = urlsplit(address)
    with pytest.raises(OSError), socket.create_server((str(place.hostname), int(place.port or 0))):
        pass
    met: list[bytes] = []

    def join() -> None:  # a rank that is there before rank 0 waits for it
        met.append(build_store(address, 1, 2, SOON).get("word"))

    other = threading.Thread(target=join)
    other.start()
    store = build_store(address, 0, 2, SOON)
    store.set("word", "here")
    other.join(20)
    assert met == [b"here"]


def test_two_meetings_of_one_process_have_ports_of_their_own() -> None:
    assert reserve_meeting("127.0.0.1") != reserve_meeting("127.0.0.1")
