"""Swaps under load, with steps scheduled ahead as on GPUs: versions, keys and values, the canary's turn, hangs."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from capo_ray.engines import EngineBroken, EngineSpec, VllmEngine
from capo_ray.engines.arrival import QUICK_SWITCHES, SWITCH_S
from capo_ray.engines.twin import Twin, worker_model
from capo_ray.protocols import Sampling, WeightsHandle
from capo_ray.types import Completion
from capo_ray.weights import WeightsRefused, build_handle, contents, iterate_tensors, payload, read_manifest
from capo_ray.weights.checksum import checksum
from tests.adapter_world import AdapterWorld, taking
from tests.engine_world import kept_logprobs, scheduling_ahead
from tests.test_engines import LONG, World, check, close_to

pytestmark = pytest.mark.real
SEATS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with scheduling_ahead():
        world = World(tmp_path_factory.mktemp("model"), max_num_seqs=SEATS)
    assert core_of(world).batch_queue_size == 2
    yield world
    world.engine.close()


def core_of(world: World) -> Any:
    engine: Any = world.engine._stepper.engine.engine_core
    return engine.engine_core


def whole(world: World, version: int) -> WeightsHandle:
    """A new version, all of it."""
    world.versions[version] = world.perturbed(version)
    return world.handle(world.versions[version], version)


def alone(world: World, version: int, adapters: AdapterWorld) -> WeightsHandle:
    """A new version, its adapters alone."""
    pairs = adapters.pairs(version)
    state = world.versions[version] = adapters.merged(world.first, pairs)
    canary = read_manifest(world.handle(state, version).manifest).canary
    return build_handle(pairs, version, canary, onto=adapters.onto)


Make = Callable[[World, int], WeightsHandle]


def swap_amid(
    world: World, running: str, num_swaps: int, num_samples: int, make: Make = whole
) -> tuple[Completion, ...]:
    """Completions of a long prompt, made while the weights were swapped again and again."""
    first = world.engine.version
    prompt = world.engine.tokenizer.encode(LONG)

    async def both() -> tuple[Completion, ...]:
        handles = [make(world, version) for version in range(first + 1, first + 1 + num_swaps)]
        # Loaded beside by now: on a busy machine the samples would end before the first of them is.
        arrivals, engine = world.engine._arrivals, world.engine._stepper.engine
        ready = {handle.version: await arrivals.of(engine, handle) for handle in handles}
        arrivals.of = lambda _, handle: asyncio.sleep(0, ready[handle.version])  # type: ignore[method-assign]
        try:
            return await amid(handles)
        finally:
            del arrivals.of

    async def amid(handles: list[WeightsHandle]) -> tuple[Completion, ...]:
        task = asyncio.create_task(world.engine.generate(prompt, Sampling(max_tokens=150, n=num_samples)))
        while world.engine.stats()["running_requests"] < min(num_samples, SEATS):
            await asyncio.sleep(0.002)
        for handle in handles:
            steps = world.engine.stats()["engine_steps_total"]
            while world.engine.stats()["engine_steps_total"] < steps + 7 and not task.done():
                await asyncio.sleep(0.001)
            await world.engine.load_weights(handle)
        return await task

    world.engine.spec = dataclasses.replace(world.engine.spec, running=running)
    return asyncio.run(both())


def test_each_token_has_the_version_that_sampled_it_through_many_swaps(world: World) -> None:
    done = swap_amid(world, "recompute", num_swaps=6, num_samples=SEATS)
    assert max(len(each.versions) for each in done) >= 5
    for each in done:
        check(world, LONG, each)


def test_kept_sequences_read_their_own_old_keys_and_nobody_elses(world: World) -> None:
    """Twice as many as there are seats: those who wait began under no version, and must find no older keys."""
    done = swap_amid(world, "keep", num_swaps=4, num_samples=2 * SEATS)
    prompt = world.engine.tokenizer.encode(LONG)
    assert max(len(each.versions) for each in done) >= 3
    assert len({each.versions[0].version for each in done}) > 1
    for each in done:
        assert close_to(each.logprobs, kept_logprobs(world.model, world.versions, prompt, each))
    after = world.generate(LONG, Sampling(max_tokens=4))
    check(world, LONG, after[0])


def test_sequences_are_kept_through_versions_that_came_as_adapters_alone(world: World) -> None:
    adapters = AdapterWorld(Path(world.engine.spec.model_path))
    prompt, first = world.engine.tokenizer.encode(LONG), world.engine.version
    with taking(world.engine, adapters):
        done = swap_amid(world, "keep", 2, 2, functools.partial(alone, adapters=adapters))
    assert [run.version for run in max((each.versions for each in done), key=len)] == [first, first + 1, first + 2]
    for each in done:
        assert close_to(each.logprobs, kept_logprobs(world.model, world.versions, prompt, each))
    world.load(seed=43, version=first + 3)


@pytest.mark.parametrize("running", ["recompute", "keep"])
def test_the_canary_is_answered_before_anything_is_computed_anew(
    world: World, running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = core_of(world)
    steps: list[tuple[str, list[int]]] = []
    usual = core.model_executor.execute_model

    def noted(output: Any, *args: Any, **more: Any) -> Any:
        if output.num_scheduled_tokens:
            steps.append((core.get_weight_version(), sorted(output.num_scheduled_tokens.values())))
        return usual(output, *args, **more)

    monkeypatch.setattr(core.model_executor, "execute_model", noted)
    swap_amid(world, running, num_swaps=1, num_samples=2 * SEATS)
    canary = len(world.engine.tokenizer.encode(LONG))
    mine = [tokens for version, tokens in steps if version == str(world.engine.version)]
    *beside, last = mine[0]
    assert last == canary
    # A sequence may end in the very step before the swap; its seat is then empty in this one.
    assert beside in ([[1] * SEATS, [1] * (SEATS - 1)] if running == "keep" else [[]])
    if running == "keep":
        assert [1] * SEATS in mine[1:4], "nobody who was running is computed anew"


def test_new_weights_are_loaded_beside_the_old_and_taken_between_two_steps(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases, which vLLM's reload writes in place, and the packed copy of the tied head included."""
    ids, version = world.engine.tokenizer.encode(LONG), world.engine.version + 1
    state = world.versions[version] = world.perturbed(version)
    handle = world.handle(state, version)
    engine = world.engine._stepper.engine

    def scores() -> Any:
        return asyncio.run(world.engine.score([ids], [1]))[0]

    before = scores()
    twin = Twin(worker_model(engine), tied=True)
    twin.load(iterate_tensors(handle.manifest, handle.payload))
    assert scores() == before, "nothing that serves was written to"
    with pytest.raises(RuntimeError, match=r"layer model\.layers\.0\.mlp\.down_proj was sent no weights"):
        tensors = iterate_tensors(handle.manifest, handle.payload)
        Twin(worker_model(engine), tied=True).load((n, t) for n, t in tensors if "0.mlp.down" not in n)
    assert scores() == before
    gone = [weakref.ref(layer) for _, layer in twin._pairs]
    gc.disable()
    del twin
    assert not [ref for ref in gone if ref() is not None], "a copy of the weights waits for no garbage collector"
    gc.enable()
    from vllm.model_executor.model_loader.reload.layerwise import LAYERWISE_INFO  # takes 7 s: not for every collection

    monkeypatch.setattr("capo_ray.engines.vllm_engine.staged", None)  # nothing is loaded while the engine stands
    known = len(LAYERWISE_INFO)
    asyncio.run(world.engine.load_weights(handle))
    assert close_to(scores(), world.logprobs(ids, 1))
    assert len(LAYERWISE_INFO) <= known, "vLLM knows of no layer but those that serve"


def test_a_way_that_was_learnt_loads_the_bits_that_vllms_own_does(world: World) -> None:
    """And a layer that is not sent all of its tensors ends it, as on vLLM's own way."""
    ids, engine = world.engine.tokenizer.encode(LONG), world.engine

    def load(like: int) -> tuple[float, ...]:
        version = engine.version + 1
        world.versions[version] = world.perturbed(like)
        assert asyncio.run(engine.load_weights(world.handle(world.versions[version], version))) == version
        return asyncio.run(engine.score([ids], [1]))[0]

    engine._arrivals._route = None
    found = load(like=31)
    route = engine._arrivals._route
    assert route is not None
    assert load(like=32) != found
    assert load(like=31) == found
    assert engine._arrivals._route is route
    handle = world.handle(world.versions[engine.version], engine.version)
    short = ((n, t) for n, t in iterate_tensors(handle.manifest, handle.payload) if "0.mlp.down" not in n)
    with pytest.raises(RuntimeError, match="1 layers were not sent all of their weights"):
        Twin(worker_model(engine._stepper.engine), tied=True, route=route).load(short)
    assert asyncio.run(engine.score([ids], [1]))[0] == found


def test_adapters_that_came_alone_are_merged_beside_and_the_canary_has_the_last_word(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender that is mistaken all through, whose checksums fit, is told by what the merged model scores."""
    adapters, engine = AdapterWorld(Path(world.engine.spec.model_path)), world.engine
    ids, first = engine.tokenizer.encode(LONG), engine.version + 1
    monkeypatch.setattr("capo_ray.engines.vllm_engine.staged", None)  # nothing is loaded while the engine stands
    bases = list[str]()
    monkeypatch.setattr(contents, "checksum", lambda flat: bases.append("read") or checksum(flat))
    contents._base_of.cache_clear()
    with taking(engine, adapters):
        for version in range(first, first + 3):
            known, handle = engine._arrivals._route, alone(world, version, adapters)
            assert asyncio.run(engine.load_weights(handle)) == version
            assert close_to(asyncio.run(engine.score([ids], [1]))[0], world.logprobs(ids, 1))
            assert known is None or engine._arrivals._route is known, "the way is that of the whole model"
        assert len(bases) == len(adapters.contents.base), "the base is hashed once, not at every version"
        older, pairs, canary = adapters.pairs(first), adapters.pairs(version), read_manifest(handle.manifest).canary
        up = "model.layers.{}.mlp.up_proj.lora_{}.weight"
        moved = {up.format(i, side): pairs[up.format(1 - i, side)] for i in (0, 1) for side in "AB"}
        stale = {name: older[name] if ".lora_A." in name else tensor for name, tensor in pairs.items()}
        larger = {name: 2.0 * tensor if ".lora_B." in name else tensor for name, tensor in pairs.items()}
        for wrong in ({**pairs, **moved}, stale, larger):
            with pytest.raises(WeightsRefused, match="differ from the learner's by"):
                asyncio.run(engine.load_weights(build_handle(wrong, version, canary, onto=adapters.onto)))
            with pytest.raises(WeightsRefused, match="serves nothing until good weights arrive"):
                asyncio.run(engine.score([ids], [1]))
        assert asyncio.run(engine.load_weights(handle)) == version
    monkeypatch.undo()
    world.load(seed=41, version=version + 1)


def test_the_interpreter_changes_hands_quickly_until_the_last_of_two_loads_is_done() -> None:
    usual_s = sys.getswitchinterval()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(QUICK_SWITCHES)
        second.enter_context(QUICK_SWITCHES)
        first.close()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    assert sys.getswitchinterval() == pytest.approx(usual_s)


@pytest.mark.parametrize("other", [False, True])
def test_a_payload_that_was_expected_is_read_and_loaded_once_and_then_judged(
    world: World, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    """Expected without its seal; where the handle that comes is of other bytes, these are read anew."""
    version = world.engine.version + 1
    state = world.versions[version] = world.perturbed(version)
    gathered, handle = (build_handle(state, version, None), world.handle(state, version))
    if not other:
        handle = dataclasses.replace(handle, payload=gathered.payload)
    read: list[object] = []
    usual = payload.checksums
    monkeypatch.setattr(payload, "checksums", lambda *args: read.append(args[1]) or usual(*args))
    loads, load, switch_s = list[float](), Twin.load, sys.getswitchinterval()
    monkeypatch.setattr(Twin, "load", lambda *args: loads.append(sys.getswitchinterval()) or load(*args))

    async def both() -> int:
        world.engine.expect_weights(gathered)
        return await world.engine.load_weights(handle)

    assert asyncio.run(both()) == version
    assert len(read) == len(loads) == 1 + other
    assert max(loads) < switch_s / 10, "the thread that steps waits for the interpreter"
    assert sys.getswitchinterval() == switch_s
    check(world, LONG, world.generate(LONG, Sampling(max_tokens=4))[0])


def test_an_expected_payload_that_is_damaged_is_refused(world: World) -> None:
    version = world.engine.version + 1
    state = world.versions[version] = world.perturbed(version)
    handle = world.handle(state, version)
    gathered = dataclasses.replace(build_handle(state, version, None), payload=handle.payload)
    handle.payload[100] ^= 1  # type: ignore[index]

    async def both() -> int:
        world.engine.expect_weights(gathered)
        return await world.engine.load_weights(handle)

    with pytest.raises(WeightsRefused, match="is damaged"):
        asyncio.run(both())
    handle.payload[100] ^= 1  # type: ignore[index]
    assert asyncio.run(both()) == version
    check(world, LONG, world.generate(LONG, Sampling(max_tokens=4))[0])


def test_a_step_that_does_not_end_fails_the_ping_with_what_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, go_on = core_of(world), threading.Event()
    usual = core.model_executor.execute_model

    def stuck(*args: Any, **more: Any) -> Any:
        go_on.wait(20)
        return usual(*args, **more)

    monkeypatch.setattr(world.engine, "spec", dataclasses.replace(world.engine.spec, step_deadline_s=0.2))
    assert world.engine.ping() == world.engine.version

    async def hang() -> None:
        monkeypatch.setattr(core.model_executor, "execute_model", stuck)
        task = asyncio.create_task(world.engine.generate([5, 6], Sampling(max_tokens=2)))
        await asyncio.sleep(0.5)
        try:
            with pytest.raises(
                EngineBroken, match=r"1 requests running, 0 waiting\) has not ended after .* allowed 0\.2"
            ):
                world.engine.ping()
        finally:
            go_on.set()
        await task

    asyncio.run(hang())
    world.engine.ping()
    assert world.idle()


def test_the_names_of_vllms_arguments_are_read_as_it_has_them() -> None:
    from vllm.engine.arg_utils import EngineArgs

    from capo_ray.engines.extra import engine_arguments

    assert set(engine_arguments()) == {field.name for field in dataclasses.fields(EngineArgs)}


def test_the_position_limit_is_that_of_the_model_also_for_a_hub_name(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    import huggingface_hub.constants

    from benchmarks.tiny import write_tiny_model
    from capo_ray.engines.runtime import engine_model_len

    snapshot = tmp_path / "hub" / "models--maker--short" / "snapshots" / ("0" * 40)
    write_tiny_model(snapshot, max_positions=512)
    (tmp_path / "hub" / "models--maker--short" / "refs").mkdir()
    (tmp_path / "hub" / "models--maker--short" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for path in ("maker/short", str(snapshot)):
        lengths = [engine_model_len(EngineSpec(model_path=path, max_model_len=n)) for n in (511, 512)]
        assert lengths == [512, 512], path
    config = json.loads((snapshot / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    (snapshot / "config.json").write_text(json.dumps(config))
    assert engine_model_len(EngineSpec(model_path=str(snapshot), max_model_len=600)) == 601


def test_an_engine_without_its_device_says_what_to_do(world: World) -> None:
    engine = VllmEngine(dataclasses.replace(world.engine.spec, device="gpu"))
    with pytest.raises(ValueError, match="was given a GPU, but the installed vLLM sees none"):
        engine.start()
