"""Whether actors find their GPUs on nodes, each actor whole on one of them."""

from __future__ import annotations

from collections.abc import Sequence

GRAIN = 1e-6


def pack(sizes: Sequence[float], num_nodes: int, gpus_per_node: int) -> bool:
    """Whether bundles of so many GPUs each go into the nodes, the largest first into the fullest that holds it.

    A bundle of a share of a GPU goes where shares are, or opens a GPU of its own.
    """
    whole = [float(gpus_per_node)] * num_nodes
    shares: list[float] = []
    for size in sorted(sizes, reverse=True):
        if 0 < size < 1:
            fit = [k for k, free in enumerate(shares) if free >= size - GRAIN]
            if fit:
                shares[min(fit, key=lambda k: shares[k])] -= size
                continue
            shares.append(1 - size)
            size = 1.0
        nodes = [k for k, free in enumerate(whole) if free >= size - GRAIN]
        if size and not nodes:
            return False
        if size:
            whole[min(nodes, key=lambda k: whole[k])] -= size
    return True
