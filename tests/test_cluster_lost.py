"""A run whose Ray dies under it ends within a minute, with the cause and exit code 1; light actors, real processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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


class Worker:
    async def start(self):
        return os.getpid()

    async def ping(self):
        return {}

    async def work(self):
        await asyncio.sleep(0.2)


async def work(pool):
    await pool.start()
    print("ready", flush=True)
    while True:
        try:
            await pool.call(Worker.work, deadline_s=300)
        except PartTimeout:
            pass


async def main():
    config = TrainConfig.model_validate({"cluster": {"num_cpus": 2}})
    await cluster.join(config)
    actor = ray.remote(num_cpus=0, max_concurrency=10)(Worker)
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


@dataclass(frozen=True)
class End:
    """How a run ended: exit code, seconds since the kill, its last words, and the processes of its Ray."""

    code: int
    took_s: float
    said: str
    family: list[psutil.Process]


CAUSES = {
    "gcs_server": "the cluster's head (GCS) did not answer",
    "raylet": "this node's Ray (its raylet) is gone",
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """The end of a run for each process of Ray that is killed under it; both runs wait at the same time."""
    folder = tmp_path_factory.mktemp("err")
    with contextlib.ExitStack() as stack:

        def start(name: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
            err = stack.enter_context((folder / name).open("w"))
            run = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=err, text=True)
            stack.callback(run.kill)
            assert run.stdout is not None and run.stdout.readline() == "ready\n", (folder / name).read_text()
            return run, psutil.Process(run.pid).children(recursive=True)

        def end(name: str, run: subprocess.Popen[str], family: list[psutil.Process]) -> End:
            next(process for process in family if name in process.name()).kill()
            killed = time.monotonic()
            code = run.wait(75)
            return End(code, time.monotonic() - killed, (folder / name).read_text(), family)

        runs = {name: start(name) for name in CAUSES}
        threads = stack.enter_context(ThreadPoolExecutor())
        waits = {name: threads.submit(end, name, *run) for name, run in runs.items()}
        return {name: wait.result() for name, wait in waits.items()}


@pytest.mark.parametrize("name", CAUSES)
def test_a_lost_cluster_ends_the_run_within_a_minute_with_its_cause(name: str, ends: dict[str, End]) -> None:
    end = ends[name]
    assert end.code == 1, end.said
    assert CAUSES[name] in end.said or "light worker" in end.said, end.said
    assert "Traceback" not in end.said and "never retrieved" not in end.said, end.said
    assert end.took_s < 60
    _, alive = psutil.wait_procs(end.family, timeout=20)
    # A container without an init leaves dead orphans in the table.
    left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert not left
