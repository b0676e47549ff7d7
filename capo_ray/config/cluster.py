"""The Ray cluster's section."""

from __future__ import annotations

import os

from pydantic import Field

from capo_ray.config.base import Idle, Section
from capo_ray.config.job import Positive

OWN = "local"
"""What Ray itself calls a new cluster of this process alone, in ray.init and in RAY_ADDRESS."""


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str = ""
    """`auto`, `ray://…` or host:port; `local`: a cluster of this run's own, whatever RAY_ADDRESS says; empty:
    RAY_ADDRESS, else one of its own."""
    num_cpus: int = Field(0, ge=0)
    """Cores of an own cluster; 0: all."""
    num_nodes: Positive = 1
    """Nodes with GPUs that the run is planned for; read with `gpus_per_node`."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs of each such node: a run that they cannot hold is refused before it starts; 0: not known."""
    gpu_memory_gib: float = Field(0.0, ge=0)
    """Memory of one GPU (79 of an 80 GB H100): a run that does not fit is refused before it starts. 0: that of the
    smallest GPU here for a cluster of the run's own, else not known."""
    wait_s: float = Field(0.0, ge=0)
    """Wait so long for nodes that join late, and ask an autoscaler for them; 0: what a joined cluster lacks ends the
    run at once."""
    object_store_mib: int = Field(0, ge=0)
    """Shared memory of an own cluster; 0: two versions of the policy and 256 MiB, as far as /dev/shm has room."""
    start_deadline_s: float = Field(120.0, gt=0)
    """For Ray to answer at the start."""
    without_token: bool = False
    """Take RAY_AUTH_MODE=disabled for a cluster with ports open beyond loopback: whoever reaches them runs code."""
    deadline_s: float = Field(30.0, gt=0)
    """The run ends when the cluster's head has not answered for this long."""

    @property
    def joined(self) -> str:
        """The address of the cluster that the run joins; empty: it makes one of its own, on this machine."""
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        return "" if address == OWN else address

    def idle(self) -> tuple[Idle, ...]:
        """The size of a joined cluster, the wait for an own one, and nodes of no size."""
        return (
            Idle(
                ("num_cpus", "object_store_mib"),
                bool(self.joined),
                "where cluster.address or RAY_ADDRESS names a cluster, which already has its size; remove it, or set "
                "cluster.address=local",
            ),
            Idle(
                ("wait_s",),
                not self.joined,
                "without a cluster to join: no node comes to one of the run's own; remove it or set cluster.address",
            ),
            Idle(("num_nodes",), self.gpus_per_node == 0, "without cluster.gpus_per_node; give that too"),
        )
