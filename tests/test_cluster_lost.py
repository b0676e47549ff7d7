"""A run whose Ray dies under it ends within a minute, with the cause and exit code 1; light actors, real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]

PROGRAM = """
import asyncio, os, sys
import ray
from capo_ray.config import TrainConfig
from capo_ray.place import cluster
from capo_ray.place.pool import WorkerPool
from capo_ray.place.watch import ClusterWatch
from capo_ray.protocols import PartTimeout, RunFailed


def make_actor():
    class Worker:
        async def start(self):
            return os.getpid()

        async def ping(self):
            return {}

        async def work(self):
            await asyncio.sleep(0.2)

    return ray.remote(num_cpus=0, max_concurrency=10)(Worker)


async def work(pool):
    await pool.start()
    print("ready", flush=True)
    while True:
        try:
            await pool.call("work", deadline_s=300)
        except PartTimeout:
            pass


async def main():
    config = TrainConfig.model_validate({"cluster": {"num_cpus": 2}})
    await cluster.join(config)
    actor = make_actor()
    pool = WorkerPool("light", lambda _: actor.remote(), 2, start_deadline_s=60)
    with ClusterWatch(config) as watch:
        try:
            await watch.guard(work(pool))
        finally:
            pool.close()


try:
    with cluster.left_behind():
        asyncio.run(main())
except RunFailed as error:
    sys.exit(f"capo-ray train: {error}")
"""


@pytest.mark.parametrize(
    "name, words",
    [
        ("gcs_server", "the cluster's head (GCS) did not answer"),
        ("raylet", "this node's Ray (its raylet) is gone"),
    ],
)
def test_a_lost_cluster_ends_the_run_within_a_minute_with_its_cause(name: str, words: str, tmp_path: Path) -> None:
    with (tmp_path / "err").open("w+") as err:
        run = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=err, text=True)
        try:
            assert run.stdout is not None and run.stdout.readline() == "ready\n", (tmp_path / "err").read_text()
            family = psutil.Process(run.pid).children(recursive=True)
            next(process for process in family if name in process.name()).kill()
            killed = time.monotonic()
            code = run.wait(75)
            took = time.monotonic() - killed
        finally:
            run.kill()
    said = (tmp_path / "err").read_text()
    assert code == 1, said
    assert words in said or "light worker" in said, said
    assert "Traceback" not in said and "never retrieved" not in said, said
    assert took < 60
    _, alive = psutil.wait_procs(family, timeout=20)
    # A container without an init leaves dead orphans in the table.
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert not left
