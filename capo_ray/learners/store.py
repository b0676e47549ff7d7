"""Where the ranks of a group meet: a store that listens on one address of rank 0's node and on no other."""

from __future__ import annotations

import datetime
import socket
from urllib.parse import urlsplit

import torch.distributed as dist


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
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.create_server((host, port), family=family)
    return dist.TCPStore(host, port, world_size, is_master=True, timeout=timeout, master_listen_fd=listener.detach())
