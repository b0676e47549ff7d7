"""The engine against Hugging Face's own forward pass: sampled, scored, swapped, refused, broken."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from benchmarks.tiny import write_tiny_model
from capo_ray.cli.compose import compose_train
from capo_ray.config.credit import EvidenceScore
from capo_ray.engines import EngineSpec, VllmEngine
from capo_ray.evidence.quotes import QuoteSource
from capo_ray.evidence.source import Doors
from capo_ray.protocols import PartLost, PartTimeout, Sampling, WeightsHandle
from capo_ray.types import Completion, Problem
from capo_ray.weights import Apart, Canary, WeightsRefused, build_handle
from tests.credit_groups import Member, group

pytestmark = pytest.mark.real
LONG = "Count: " + " ".join(str(i) for i in range(120)) + "\n"  # about 400 characters: three blocks of 128
State = Mapping[str, Any]


class World:
    """An engine, and the same model in Hugging Face under any weights."""

    def __init__(self, path: Path, **spec: Any) -> None:
        write_tiny_model(path, init_scale=3.0)
        self.engine = VllmEngine(
            EngineSpec(model_path=str(path), max_model_len=640, kv_cache_gib=0.25, deadline_s=60, **spec)
        )
        self.engine.start()
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
        self.first = {name: tensor.clone() for name, tensor in self.model.named_parameters()}
        self.versions: dict[int, State] = {0: self.first}

    def perturbed(self, seed: int) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        return {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in self.first.items()}

    def logprobs(
        self, ids: Sequence[int], start: int, state: State | None = None, temperature: float = 1.0
    ) -> list[float]:
        """Hugging Face's logprobs of ids[start:] under `state`."""
        import torch

        self.model.load_state_dict(state if state is not None else self.versions[self.engine.version], strict=False)
        with torch.no_grad():
            logits = self.model(torch.tensor([list(ids)])).logits[0, start - 1 : -1].float() / temperature
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[start:])[:, None])[:, 0].tolist()

    def entropies(self, ids: Sequence[int], start: int, temperature: float = 1.0, top_p: float = 1.0) -> list[float]:
        """Hugging Face's entropies of the distributions that ids[start:] were drawn from, present weights."""
        import torch

        self.model.load_state_dict(self.versions[self.engine.version], strict=False)
        with torch.no_grad():
            logits = self.model(torch.tensor([list(ids)])).logits[0, start - 1 : -1].float() / temperature
        probs = torch.softmax(logits, -1).sort(-1, descending=True).values
        probs = torch.where(probs.cumsum(-1) - probs < top_p, probs, 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
        return torch.special.entr(probs).sum(-1).tolist()

    def handle(self, state: State, version: int, error: float = 0.0) -> WeightsHandle:
        """The state as a learner publishes it; `error` is put on the canary's logprobs."""
        ids = self.engine.tokenizer.encode(LONG)
        canary = Canary(tuple(ids), tuple(x + error for x in self.logprobs(ids, 1, state)), Apart(1e-3, 1e-3))
        return build_handle(state, version, canary)

    def load(self, seed: int, version: int) -> dict[str, Any]:
        """Perturbed weights, loaded."""
        state = self.perturbed(seed)
        self.versions[version] = state
        assert asyncio.run(self.engine.load_weights(self.handle(state, version))) == version
        return state

    def generate(self, prompt: str, sampling: Sampling) -> tuple[Completion, ...]:
        return asyncio.run(self.engine.generate(self.engine.tokenizer.encode(prompt), sampling))

    def idle(self) -> bool:
        """Whether the engine holds no request, waiting up to 5 s for it."""
        deadline = time.monotonic() + 5
        while (stats := self.engine.stats())["running_requests"] + stats[
            "waiting_requests"
        ] and time.monotonic() < deadline:
            time.sleep(0.01)
        return not stats["running_requests"] + stats["waiting_requests"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("model"))
    yield world
    world.engine.close()


def close_to(got: Sequence[float], expected: Sequence[float]) -> bool:
    return len(got) == len(expected) and all(abs(a - b) < 1e-4 for a, b in zip(got, expected, strict=True))


def check(world: World, prompt: str, done: Completion, temperature: float = 1.0) -> None:
    """The completion is whole and its logprobs are Hugging Face's, run by run."""
    ids = [*world.engine.tokenizer.encode(prompt), *done.token_ids]
    start = len(ids) - len(done.token_ids)
    begin = 0
    for run in done.versions:
        expected = world.logprobs(ids, start, world.versions[run.version], temperature)
        assert close_to(done.logprobs[begin : run.end], expected[begin : run.end])
        begin = run.end
    assert begin == len(done.token_ids) == len(done.logprobs) == len(done.char_ends)
    assert done.text == world.engine.tokenizer.decode(done.token_ids) and done.char_ends[-1] == len(done.text)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_of_sampled_tokens_equal_those_of_the_model(world: World, temperature: float) -> None:
    done = world.generate("3+4=", Sampling(temperature=temperature, max_tokens=40, n=4))
    assert len(done) == 4 and len({tuple(d.token_ids) for d in done}) == 4
    for each in done:
        check(world, "3+4=", each, temperature)
        assert each.finish == ("stop" if each.token_ids[-1] == world.engine.tokenizer.eos_id else "length")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropies_are_those_of_the_distributions_that_were_sampled_from(world: World, temperature: float) -> None:
    done = world.generate("3+4=", Sampling(temperature=temperature, max_tokens=40, n=2, entropies=True))
    prompt = world.engine.tokenizer.encode("3+4=")
    for each in done:
        check(world, "3+4=", each, temperature)
        assert close_to(each.entropies, world.entropies([*prompt, *each.token_ids], len(prompt), temperature))
    assert max(done[0].entropies) > 0.5, "the model is not sure of everything"
    (plain,) = world.generate("3+4=", Sampling(max_tokens=4))
    assert len(plain.entropies) == 0


def test_entropies_of_a_nucleus_are_those_of_the_nucleus(world: World) -> None:
    (done,) = world.generate("3+4=", Sampling(top_p=0.5, max_tokens=30, entropies=True))
    prompt = world.engine.tokenizer.encode("3+4=")
    expected = world.entropies([*prompt, *done.token_ids], len(prompt), top_p=0.5)
    assert close_to(done.entropies, expected)


def test_greedy_samples_the_argmax_with_logprobs_at_temperature_one(world: World) -> None:
    (done,) = world.generate("3+4=", Sampling(temperature=0.0, top_p=0.5, max_tokens=12))
    (again,) = world.generate("3+4=", Sampling(temperature=0.0, max_tokens=12))
    assert done == again
    check(world, "3+4=", done)


def test_a_seed_gives_the_same_samples_in_the_same_order(world: World) -> None:
    first, second = (world.generate("a", Sampling(max_tokens=12, n=3, seed=5)) for _ in range(2))
    assert [d.token_ids.tolist() for d in first] == [d.token_ids.tolist() for d in second]


def test_scores_equal_those_of_the_model_also_when_prefixes_are_shared(world: World) -> None:
    encode = world.engine.tokenizer.encode
    sequences = [encode(LONG + tail) for tail in ("a+b", "12:ok", "")] + [encode(LONG + "a+b")]
    starts = [len(encode(LONG)), len(encode(LONG)) - 3, len(encode(LONG)), 1]
    for _ in range(2):  # the second time, whole sequences are in the prefix cache
        scores = asyncio.run(world.engine.score(sequences, starts))
        for ids, start, got in zip(sequences, starts, scores, strict=True):
            assert close_to(got, world.logprobs(ids, start) if start < len(ids) else [])
    assert world.engine.stats()["cached_prompt_tokens_total"] > 0


def test_what_a_response_quotes_is_worth_the_answers_likelihood_behind_that_alone(world: World) -> None:
    config, tokenizer = compose_train(["credit=eapo", "credit.answer_cue=="]), world.engine.tokenizer
    asked = config.credit.asked(EvidenceScore)

    def encode(problem: Problem) -> tuple[int, ...]:
        return tuple(tokenizer.encode(problem.prompt))

    others: dict[str, Any] = dict.fromkeys(("verifier", "judge", "reward_model", "ledger"))
    doors = Doors(config, tokenizer, world.engine, encode_prompt=encode, stops={}, **others)
    texts = ["<evidence>[2] z:3+4</evidence>\n\n7", "7", "<evidence>[1] q:1+1\n[2] z:3+4</evidence>\n\n7"]
    members = group(*(Member(1, [1], text=text) for text in texts)).members
    problem = Problem("p", "[1] q:1+1\n[2] z:3+4\n?z", "12")
    found = asyncio.run(QuoteSource(asked, doors).gather(problem, members, 0.0))
    shown = [tokenizer.encode(f"{sentences}?z=12") for sentences in ("[2] z:3+4\n", problem.prompt[:-2])]
    one, both = (math.exp(fmean(world.logprobs(ids, len(ids) - 2))) for ids in shown)
    assert [e.more["evidence_score"] for e in found] == pytest.approx([one, 0.0, both], rel=1e-3)
    assert abs(one - both) > 1e-2 * one  # or a mistaken context would pass


def test_a_response_ends_with_a_token_or_a_text_that_stops_it(world: World) -> None:
    (free,) = world.generate("1+2", Sampling(temperature=0.0, max_tokens=24))
    token = int(free.token_ids[5])
    first = free.token_ids.tolist().index(token)
    (done,) = world.generate("1+2", Sampling(temperature=0.0, max_tokens=24, stop_token_ids=(token,)))
    assert (done.token_ids.tolist(), done.finish) == (free.token_ids[: first + 1].tolist(), "stop")
    text = free.text[7:9]
    (done,) = world.generate("1+2", Sampling(temperature=0.0, max_tokens=24, stop_strings=(text,)))
    assert done.finish == "stop" and done.text.endswith(text) and done.text.count(text) == 1
    assert free.text.startswith(done.text) and len(done.logprobs) == len(done.token_ids)


def test_a_regex_holds_for_every_sample(world: World) -> None:
    import re

    pattern = r"(ok|wrong): [1-3]\n"
    done = world.generate("?", Sampling(max_tokens=20, n=4, regex=pattern))
    assert all(re.fullmatch(pattern, d.text) and d.finish == "stop" for d in done)


def test_new_weights_serve_exactly_also_behind_a_cached_prompt(world: World) -> None:
    before = world.generate(LONG, Sampling(max_tokens=8, n=2))  # its blocks are in the prefix cache now
    state = world.load(seed=1, version=7)
    after = world.generate(LONG, Sampling(max_tokens=8, n=2))
    ids = [*world.engine.tokenizer.encode(LONG), *after[0].token_ids]
    assert not close_to(world.logprobs(ids, len(ids) - 8, world.first), world.logprobs(ids, len(ids) - 8, state))
    for done in (*before, *after):
        check(world, LONG, done)
    assert {r.version for d in after for r in d.versions} == {7} == {world.engine.version}
    (score,) = asyncio.run(world.engine.score([ids], [1]))
    assert close_to(score, world.logprobs(ids, 1, state))
    assert 0 < world.engine.stats()["swap_s"] < 5


def test_a_swap_in_mid_generation_closes_a_run_of_versions_and_stays_exact(world: World) -> None:
    state = world.perturbed(2)
    world.versions[8] = state
    handle = world.handle(state, 8)

    async def both() -> tuple[tuple[Completion, ...], tuple[tuple[float, ...], ...]]:
        ids = world.engine.tokenizer.encode(LONG)
        before = world.engine.stats()["busy_s_total"]
        running = asyncio.create_task(world.engine.generate(ids, Sampling(max_tokens=160, n=6)))
        while world.engine.stats()["busy_s_total"] == before or world.engine.stats()["running_requests"] < 6:
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.1)
        scores = asyncio.create_task(world.engine.score([ids] * 3, [1] * 3))
        await world.engine.load_weights(handle)
        return await running, await scores

    done, scores = asyncio.run(both())
    assert any(len(d.versions) == 2 for d in done)
    for each in done:
        check(world, LONG, each)
    ids = world.engine.tokenizer.encode(LONG)
    wanted = [world.logprobs(ids, 1, world.versions[v]) for v in (7, 8)]
    assert all(any(close_to(score, one) for one in wanted) for score in scores)


def damaged(handle: WeightsHandle) -> WeightsHandle:
    payload = handle.payload.copy()  # type: ignore[attr-defined]
    payload[1000] ^= 1
    return WeightsHandle(handle.version, handle.manifest, payload)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("damaged", "is damaged"),
        ("missing", r"missing \['model.norm.weight'\]"),
        ("extra", r"unknown \['model.novel.weight'\]"),
        ("shape", r"expected shape \[64\], got \[63\]"),
        ("dtype", "the engine holds float32, got bfloat16"),
        ("canary", "differ from the learner's by 0.0"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_served_until_good_ones(
    world: World, kind: str, message: str
) -> None:
    import torch

    state = world.perturbed(3)
    bad = {
        "damaged": lambda: damaged(world.handle(state, 9)),
        "missing": lambda: build_handle({n: t for n, t in state.items() if n != "model.norm.weight"}, 9, None),
        "extra": lambda: build_handle({**state, "model.novel.weight": torch.ones(3)}, 9, None),
        "shape": lambda: build_handle({**state, "model.norm.weight": torch.ones(63)}, 9, None),
        "dtype": lambda: build_handle({**state, "model.norm.weight": torch.ones(64).bfloat16()}, 9, None),
        "canary": lambda: world.handle(state, 9, error=0.05),
    }[kind]()

    async def refused() -> None:
        sampling = Sampling(max_tokens=400, n=8)
        waiting = asyncio.create_task(world.engine.generate(world.engine.tokenizer.encode("a"), sampling))
        while not world.engine.stats()["running_requests"]:
            await asyncio.sleep(0.002)
        with pytest.raises(WeightsRefused, match=message):
            await world.engine.load_weights(bad)
        with pytest.raises(WeightsRefused):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(refused())
    for refuse in (lambda: world.generate("a", Sampling(max_tokens=2)), world.engine.ping):
        with pytest.raises(WeightsRefused, match="serves nothing until good weights arrive"):
            refuse()
    with pytest.raises(WeightsRefused):
        asyncio.run(world.engine.score([[5, 6]], [1]))
    assert world.idle() and world.engine.stats()["serving_frac"] == 0
    world.load(seed=4, version=10)
    check(world, "a", world.generate("a", Sampling(max_tokens=4))[0])


def test_tied_weights_may_come_with_the_output_head_or_without(world: World) -> None:
    state = world.perturbed(5)
    world.versions[11] = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
    asyncio.run(world.engine.load_weights(build_handle(world.versions[11], 11, None)))
    check(world, "a", world.generate("a", Sampling(max_tokens=4))[0])


def test_weights_reach_workers_in_other_processes_through_a_private_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of tensor_parallel > 1, walked with one worker."""
    for room in ("swap", "arrival"):
        monkeypatch.setattr(f"capo_ray.engines.{room}.in_process", lambda engine: False)
    world.load(seed=6, version=12)
    check(world, "a", world.generate("a", Sampling(max_tokens=4))[0])


def test_weights_on_their_way_to_other_processes_have_no_name_that_a_killed_engine_would_leave() -> None:
    from capo_ray.engines.transfer import shared_file

    with shared_file(np.arange(7, dtype=np.uint8)) as path:
        read = subprocess.run(["od", "-An", "-tu1", path], capture_output=True, text=True, check=True)
        assert read.stdout.split() == list("0123456") and os.stat(path).st_nlink == 0
    assert not os.path.exists(path)


def test_all_scores_of_a_call_come_from_one_version(world: World) -> None:
    ids = world.engine.tokenizer.encode(LONG)
    texts = [[*ids[:n], *ids[:9]] for n in range(60, 380, 2)]
    version = world.engine.version + 1
    world.versions[version] = world.perturbed(3)

    async def swap_amid() -> tuple[tuple[float, ...], ...]:
        before = world.engine.stats()["requests_total"]
        scores = asyncio.create_task(world.engine.score(texts, [len(text) - 9 for text in texts]))
        while world.engine.stats()["requests_total"] < before + 3:
            await asyncio.sleep(0.001)
        assert not scores.done()
        await world.engine.load_weights(world.handle(world.versions[version], version))
        return await scores

    found = asyncio.run(swap_amid())
    for text, score in zip(texts, found, strict=True):
        assert close_to(score, world.logprobs(text, len(text) - 9, world.versions[version]))


def test_a_stream_yields_each_sample_and_closing_it_frees_the_others(world: World) -> None:
    async def first_of(n: int) -> Completion:
        stream = world.engine.stream(world.engine.tokenizer.encode("a"), Sampling(max_tokens=600, n=n))
        async for done in stream:
            await stream.aclose()  # type: ignore[attr-defined]
            return done
        raise AssertionError("an empty stream")

    async def all_of(n: int) -> list[Completion]:
        stream = world.engine.stream(world.engine.tokenizer.encode("a"), Sampling(max_tokens=6, n=n))
        return [done async for done in stream]

    check(world, "a", asyncio.run(first_of(64)))
    assert world.idle()
    assert len(asyncio.run(all_of(3))) == 3


def test_a_cancelled_request_frees_the_engine(world: World) -> None:
    async def cancel() -> None:
        prompt = world.engine.tokenizer.encode("a")
        task = asyncio.create_task(world.engine.generate(prompt, Sampling(max_tokens=600, n=64)))
        while not world.engine.stats()["running_requests"]:
            await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(cancel())
    assert world.idle()


def test_a_bad_request_fails_alone(world: World) -> None:
    async def both() -> None:
        prompt = world.engine.tokenizer.encode("a")
        good = asyncio.create_task(world.engine.generate(prompt, Sampling(max_tokens=20)))
        for bad, sampling in (
            (prompt, Sampling(regex="((")),
            ([10**6], Sampling()),
            ([], Sampling()),
            (prompt * 700, Sampling()),
            (prompt, Sampling(max_tokens=0)),
        ):
            with pytest.raises(ValueError):
                await world.engine.generate(bad, sampling)
        with pytest.raises(ValueError, match="1 <= start"):
            await world.engine.score([prompt], [0])
        assert len((await good)[0].token_ids)

    asyncio.run(both())


def test_a_request_past_its_deadline_says_so_and_frees_the_engine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    monkeypatch.setattr(world.engine, "spec", dataclasses.replace(world.engine.spec, deadline_s=0.05))
    with pytest.raises(PartTimeout, match=r"64 of 64 requests unfinished after 0\.05 s"):
        world.generate(LONG, Sampling(max_tokens=200, n=64, regex="x{200}"))  # none can end by itself
    assert world.idle()


def test_a_failing_step_fails_every_waiting_request_with_its_cause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of this engine: it breaks it."""

    async def broken() -> None:
        prompt = world.engine.tokenizer.encode("a")
        tasks = [asyncio.create_task(world.engine.generate(prompt, Sampling(max_tokens=600, n=8))) for _ in range(3)]
        while world.engine.stats()["running_requests"] < 24:
            await asyncio.sleep(0.002)
        core: Any = world.engine._stepper.engine.engine_core
        monkeypatch.setattr(core.engine_core.model_executor, "execute_model", lambda *_, **__: 1 / 0)
        for task in tasks:
            with pytest.raises(PartLost, match="division by zero") as caught:
                await asyncio.wait_for(task, 10)
            assert isinstance(caught.value.__cause__, ZeroDivisionError)

    asyncio.run(broken())
    for refuse in (lambda: world.generate("a", Sampling()), world.engine.ping):
        with pytest.raises(PartLost, match="must be started anew"):
            refuse()
    assert world.engine.stats()["serving_frac"] == 0
