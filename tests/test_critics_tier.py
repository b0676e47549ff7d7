"""The critic workers behind one door: late ones, lost ones, a tier that is down. The workers are fakes, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cli.compose import compose_train
from capo_ray.config import TrainConfig
from capo_ray.config.sections import CriticConfig
from capo_ray.critics import build_judge
from capo_ray.place.placement import Places
from capo_ray.place.role import Site
from capo_ray.place.roles import critic
from capo_ray.place.roles.critic import CriticPool, CriticWorker
from capo_ray.protocols import JudgeRequest, PartTimeout, RunFailed
from capo_ray.types import Critique, Problem, Provenance

PROBLEM, REQUESTS = Problem("p", "1+1", "2"), [JudgeRequest(("a",)), JudgeRequest(("b",))]
Answer = tuple[tuple[Critique, ...], ...]
Worker = Callable[[], Coroutine[Any, Any, Answer]]


def critique(text: str, reason: str = "") -> Critique:
    return Critique(frozenset({0}) if text else None, None, text, reason, Provenance("m", "", 0))


def answer(text: str) -> Answer:
    return tuple((critique(text),) for _ in REQUESTS)


def lateness(seconds: float, then: Answer) -> Worker:
    async def work() -> Answer:
        await asyncio.sleep(seconds)
        return then

    return work


def raising(error: Exception) -> Worker:
    async def work() -> Answer:
        raise error

    return work


class FakeWorkers:
    """A `WorkerPool` whose call number i is answered by worker i; counts what is cancelled."""

    def __init__(self, *workers: Worker) -> None:
        self.workers = list(workers)
        self.used: list[set[int]] = []
        self.cancelled = 0

    async def call(self, method: str, *arguments: Any, deadline_s: float, used: set[int]) -> Answer:
        index = len(self.used)
        self.used.append(set(used))
        used.add(index)
        try:
            return await asyncio.wait_for(self.workers[min(index, len(self.workers) - 1)](), deadline_s)
        except TimeoutError as error:
            raise PartTimeout(f"critic worker {index} did not answer within {deadline_s} s") from error
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def stats(self) -> dict[str, float]:
        return {}


def make_tier(*workers: Worker, **critic: object) -> tuple[CriticPool, FakeWorkers]:
    config = TrainConfig.model_validate({"critic": {"deadline_s": 0.2, "num_workers": 2, **critic}})
    tier = CriticPool(config, lambda _: pytest.fail("no actor is started here"))
    fakes = FakeWorkers(*workers)
    tier.pool = fakes  # type: ignore[assignment]
    return tier, fakes


def ask(tier: CriticPool, times: int = 1) -> Answer:
    async def go() -> Answer:
        for _ in range(times):
            last = await tier.critique(PROBLEM, REQUESTS, 4)
        return last

    return asyncio.run(asyncio.wait_for(go(), 10))


def counts(tier: CriticPool) -> dict[str, float]:
    return {name.removeprefix("critic/").removesuffix("_total"): n for name, n in tier.stats().items() if n}


def test_a_group_that_comes_late_is_sent_to_another_worker() -> None:
    tier, workers = make_tier(lateness(60, answer("slow")), lateness(0, answer("quick")))
    assert ask(tier) == answer("quick")
    assert workers.used == [set(), {0}], "the second try keeps away from the first worker"
    assert counts(tier) == {"retried_groups": 1}


def test_a_group_without_a_single_vote_is_sent_again_and_one_with_unreadable_votes_is_not() -> None:
    silent = tuple((critique("", "deadline"), critique("", "failed: aborted")) for _ in REQUESTS)
    tier, _ = make_tier(lateness(0, silent), lateness(0, answer("quick")))
    assert ask(tier) == answer("quick")
    hm = Critique(None, None, "hm", "no verdict", Provenance("m", "", 1))
    unreadable = tuple((critique("", "deadline"), hm) for _ in REQUESTS)
    tier, workers = make_tier(lateness(0, unreadable), lateness(0, answer("quick")))
    assert ask(tier) == unreadable and len(workers.used) == 1
    too_long = tuple((critique("", "not asked: the prompt is too long"),) for _ in REQUESTS)
    tier, workers = make_tier(lateness(0, too_long), lateness(0, answer("quick")))
    assert ask(tier) == too_long and len(workers.used) == 1


def test_a_slow_worker_is_hedged_and_the_slower_answer_is_cancelled() -> None:
    tier, workers = make_tier(
        lateness(60, answer("slow")), lateness(0, answer("quick")), deadline_s=30.0, hedge_after_s=0.05
    )
    assert ask(tier) == answer("quick")
    assert workers.cancelled == 1
    assert counts(tier) == {"hedged_groups": 1}


def test_without_retries_a_late_group_is_told_to_be_late() -> None:
    tier, _ = make_tier(lateness(60, answer("slow")), max_retries=0)
    with pytest.raises(PartTimeout, match="did not answer within"):
        ask(tier)


def test_two_deadlines_bound_a_group_however_many_tries_it_has() -> None:
    tier, workers = make_tier(lateness(60, answer("slow")), max_retries=3)

    async def timed() -> float:
        clock = asyncio.get_running_loop().time
        started = clock()
        with pytest.raises(PartTimeout):
            await tier.critique(PROBLEM, REQUESTS, 4)
        return clock() - started

    assert asyncio.run(timed()) < 2 * 0.2 + 2  # far below the 60 s of a worker, with room for a busy machine
    assert 2 <= len(workers.used) <= 4


def test_retries_are_spent_out_of_a_budget() -> None:
    tier, workers = make_tier(raising(PartTimeout("late")), max_retries=1)
    for _ in range(50):
        with pytest.raises(PartTimeout):
            ask(tier)
    # ten at once, and a fifth of the groups beyond
    assert counts(tier)["retried_groups"] == len(workers.used) - 50
    assert 10 <= counts(tier)["retried_groups"] <= 10 + 0.2 * 50


def test_a_defect_in_a_worker_is_not_taken_for_lateness() -> None:
    tier, _ = make_tier(raising(RunFailed("critic workers died 21 times")))
    with pytest.raises(RunFailed, match="died 21 times"):
        ask(tier)


def test_a_worker_tells_its_queue_its_engines_seconds_and_what_the_prefix_cache_saved() -> None:
    class Busy:
        def ping(self) -> int:
            return 0

        def stats(self) -> dict[str, float]:
            return {
                "running_requests": 3.0,
                "waiting_requests": 5.0,
                "busy_s_total": 7.0,
                "cached_prompt_tokens_total": 640.0,
                "swap_s": 0.0,
            }

    config = CriticConfig(backend="calculator")
    worker = CriticWorker(None, config, "majority", 1, None)
    worker._engine, worker._judge = Busy(), build_judge(config, vote="majority", quorum=1)  # type: ignore[assignment]
    figures = asyncio.run(worker.ping())
    assert 0 <= figures.pop("critic/engine_up_s_total") < 60
    assert figures == {
        "critic/running_requests": 3.0,
        "critic/waiting_requests": 5.0,
        "critic/engine_busy_s_total": 7.0,
        "critic/prefix_hit_tokens_total": 640.0,
    }


def test_a_cancelled_group_cancels_its_tries() -> None:
    tier, workers = make_tier(lateness(60, answer("slow")), deadline_s=30.0)

    async def go() -> None:
        task = asyncio.create_task(tier.critique(PROBLEM, REQUESTS, 4))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert workers.cancelled == 1 and counts(tier) == {}


@pytest.mark.parametrize(("trust", "stops_by"), [("always", "majority"), ("verdict", "average")])
def test_workers_stop_early_by_a_vote_that_no_verdict_can_undo(
    trust: str, stops_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(critic, "CriticPool", lambda config, make, store: make)
    monkeypatch.setattr(critic, "spawn", lambda kind, options, *given: given)
    # Of the store's keeper, an actor, the first mention starts Ray.
    monkeypatch.setattr(critic, "_build_store", lambda config, run_dir: None)
    config = compose_train(["credit=vppo", f"credit.trust={trust}"])
    make: Any = critic.build(Site(config, Path("run"), Places(config)))
    assert make(0)[2:4] == (stops_by, 1)
