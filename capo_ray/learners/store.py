"""Where the ranks of a group meet: a store that listens on one address of rank 0's node and on no other.

    rank 0: reserve_meeting(host) -> tcp://host:port  --told to all-->  build_store(address, rank, …)

The port is taken when its number is told: one that was only found free can be somebody else's by the time the ranks
have loaded what they need, and then none of them starts.
"""

from __future__ import annotations

import datetime
import socket
from urllib.parse import urlsplit

import torch.distributed as dist

_reserved: dict[tuple[str, int], socket.socket] = {}
"""Ports that this process listens on until its store takes them over."""


def reserve_meeting(host: str) -> str:
    """An address of this node, `tcp://host:port`, that this process listens on from now on; for its own rank 0."""
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    listener = socket.create_server((host, 0), family=family)
    port = int(listener.getsockname()[1])
    _reserved[host, port] = listener
    return f"tcp://{host}:{port}"


def build_store(init_method: str, rank: int, world_size: int, timeout: datetime.timedelta) -> dist.Store:
    """The store at `init_method` (`tcp://host:port`), held by rank 0; a store in memory where nobody is to be met.

    torch's own would listen on every interface, and takes whatever comes without a token.
    """
    if not init_method:
        return dist.HashStore()
    place = urlsplit(init_method)
    host, port = str(place.hostname), int(place.port or 0)
    if rank != 0:
        return dist.TCPStore(host, port, world_size, is_master=False, timeout=timeout)
    listener = _reserved.pop((host, port), None)
    if listener is None:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    return dist.TCPStore(host, port, world_size, is_master=True, timeout=timeout, master_listen_fd=listener.detach())


def listen(address: str, num_members: int, timeout: datetime.timedelta) -> dist.Store:
    """The store at an address that this process reserved, once all members of its group have come."""
    return build_store(address, 0, num_members, timeout)
