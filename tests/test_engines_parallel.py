"""One engine over two worker processes (tensor_parallel=2): the same numbers as one model in one process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from capo_ray.protocols import Sampling
from tests import test_engines
from tests.test_engines import LONG, World, check, close_to

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("model"), tensor_parallel=2)
    yield world
    world.engine.close()


def test_two_workers_sample_score_and_take_new_weights(world: World) -> None:
    for done in world.generate(LONG, Sampling(max_tokens=24, n=4)):
        check(world, LONG, done)
    ids = world.engine.tokenizer.encode(LONG)
    state = world.load(seed=1, version=7)
    (score,) = asyncio.run(world.engine.score([ids], [1]))
    assert close_to(score, world.logprobs(ids, 1, state))
    for done in world.generate(LONG, Sampling(max_tokens=24, n=4)):
        check(world, LONG, done)
        assert {run.version for run in done.versions} == {7}
    test_engines.test_a_swap_in_mid_generation_closes_a_run_of_versions_and_stays_exact(world)
    assert not list(Path("/dev/shm").glob("capo-ray-weights-*"))


def test_no_memory_that_the_workers_share_has_a_name_that_would_outlive_a_killed_engine(world: World) -> None:
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    maps = "".join(Path(f"/proc/{process.pid}/maps").read_text() for process in family)
    shared = re.findall(r"/dev/shm/(psm_|vllm_dist_)\S+( \(deleted\))?\n", maps)
    assert {name for name, _ in shared} == {"psm_", "vllm_dist_"}
    assert all(deleted for _, deleted in shared)
