"""One engine over two worker processes (tensor_parallel=2): the same numbers as one model in one process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from capo_ray.protocols import Sampling
from capo_ray.weights import Apart, Canary, WeightsRefused, build_handle
from tests import test_engines
from tests.adapter_world import AdapterWorld, taking
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


def test_each_of_two_workers_receives_in_buckets_and_refuses_what_is_damaged(world: World) -> None:
    from benchmarks.wire import Wire

    ids = world.engine.tokenizer.encode(LONG)
    wire, state = Wire(world.engine, bucket_bytes=1 << 14), world.perturbed(21)
    canary = Canary(tuple(ids), tuple(world.logprobs(ids, 1, state)), Apart(1e-3, 1e-3))
    assert wire.publish(state, 21, canary) == 21
    (score,) = asyncio.run(world.engine.score([ids], [1]))
    assert close_to(score, world.logprobs(ids, 1, state))
    damaged = {**state, "model.norm.weight": state["model.norm.weight"] + 1e-6}
    with pytest.raises(WeightsRefused, match=r"tensor model\.norm\.weight of version 22 is damaged"):
        wire.publish(damaged, 22, canary, state)
    world.load(seed=23, version=23)


def test_each_of_two_workers_merges_adapters_that_were_sent_alone(world: World) -> None:
    """By a private file, and in buckets: fused and sharded layers come out as of the merged model."""
    from benchmarks.wire import Wire

    adapters, ids = AdapterWorld(Path(world.engine.spec.model_path)), world.engine.tokenizer.encode(LONG)
    with taking(world.engine, adapters):
        for version in (31, 32):
            pairs = adapters.pairs(version)
            state = world.versions[version] = adapters.merged(world.first, pairs)
            canary = Canary(tuple(ids), tuple(world.logprobs(ids, 1, state)), Apart(1e-3, 1e-3))
            if version == 31:
                handle = build_handle(pairs, version, canary, onto=adapters.onto)
                assert asyncio.run(world.engine.load_weights(handle)) == version
            else:
                assert Wire(world.engine).publish(pairs, version, canary, onto=adapters.onto) == version
            (score,) = asyncio.run(world.engine.score([ids], [1]))
            assert close_to(score, world.logprobs(ids, 1, state))
    world.load(seed=33, version=33)


def test_no_memory_that_the_workers_share_has_a_name_that_would_outlive_a_killed_engine(world: World) -> None:
    import vllm._custom_ops  # noqa: F401  loads the kernels of this processor

    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    maps = "".join(Path(f"/proc/{process.pid}/maps").read_text() for process in family)
    shared = re.findall(r"/dev/shm/(psm_|vllm_dist_)\S+( \(deleted\))?\n", maps)
    # vLLM builds the memory of a group for AVX-512 alone: with AVX2 its workers add up over gloo
    made = {"psm_", "vllm_dist_"} if hasattr(torch.ops._C, "init_shm_manager") else {"psm_"}
    assert {name for name, _ in shared} == made
    assert all(deleted for _, deleted in shared)
