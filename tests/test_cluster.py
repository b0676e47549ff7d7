"""Joining a cluster that is not there, or does not speak Ray: one sentence, in time."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capo_ray.config import TrainConfig
from capo_ray.place import cluster
from capo_ray.protocols import RunFailed


def config(address: str, start_deadline_s: float = 20.0) -> TrainConfig:
    return TrainConfig.model_validate({"cluster": {"address": address, "start_deadline_s": start_deadline_s}})


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(RunFailed, match=r"expected Ray at 127\.0\.0\.1:\d+, but nothing answers there"):
            asyncio.run(cluster.join(config(f"127.0.0.1:{held.getsockname()[1]}")))


@pytest.mark.real
def test_a_port_that_never_speaks_ends_the_program_within_the_deadline(tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        words = ["train", f"cluster.address={address}", "cluster.start_deadline_s=5", f"run.dir={tmp_path}"]
        done = subprocess.run([sys.executable, "-m", "capo_ray", *words], capture_output=True, text=True, timeout=90)
    assert done.returncode == 1
    assert "to answer within cluster.start_deadline_s=5, got nothing" in done.stderr
    assert time.monotonic() - started < 60
