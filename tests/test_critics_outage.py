"""A critic that is down: groups wait for it, one request asks, and the end of the wait has the critic's own words."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from capo_ray.config.critic import CriticConfig, EndpointConfig
from capo_ray.critics import outage
from capo_ray.critics.endpoint import EndpointJudge
from capo_ray.critics.outage import MAX_STRIKES, PatientJudge
from capo_ray.flow import Pipeline, RunOutcome
from capo_ray.flow.state import RunState
from capo_ray.protocols import JudgeRequest, PartLost, RunFailed
from capo_ray.types import Critique, Problem, Provenance
from tests.fakes import fake_parts
from tests.test_critics_endpoint import Server, answer
from tests.test_pipeline import make_config

PROBLEM = Problem("p", "1+1", "2")
GROUP = [JudgeRequest((name,)) for name in "abcd"]
Votes = tuple[Critique, ...]


def votes(reason: str = "") -> Votes:
    return (Critique(None if reason else frozenset(), None, "" if reason else "said", reason, Provenance("m", "", 0)),)


class World:
    """A clock that sleeping moves on, and a judge that answers as `reply(now, request)` says, a second later."""

    def __init__(self, reply: Callable[[float, JudgeRequest], Votes], **critic: object) -> None:
        self.now, self.reply = 0.0, reply
        self.asked: list[tuple[float, int]] = []
        self.under_way = self.most_under_way = 0
        self.judge = PatientJudge(self, CriticConfig(**critic), clock=lambda: self.now, sleep=self.sleep)  # type: ignore[arg-type]

    async def sleep(self, seconds: float) -> None:
        ends = self.now + seconds
        while self.now < ends:
            await asyncio.sleep(0)
            self.now += 0.01

    async def critique(self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int) -> tuple[Votes, ...]:
        self.asked.append((self.now, len(responses)))
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        await self.sleep(1.0)
        self.under_way -= 1
        return tuple(self.reply(self.now, r) for r in responses)

    def run(self, num_groups: int) -> list[tuple[Votes, ...]]:
        async def go() -> list[tuple[Votes, ...]]:
            return list(await asyncio.gather(*(self.judge.critique(PROBLEM, GROUP, 1) for _ in range(num_groups))))

        return asyncio.run(asyncio.wait_for(go(), 60))


def test_groups_wait_for_a_critic_that_is_down_and_one_response_at_a_time_asks_for_it() -> None:
    world = World(lambda now, _: votes("failed: HTTP 500: boom") if now < 100 else votes())
    said = world.run(6)
    assert all(each == votes() for group in said for each in group), "no group goes on with its outcome alone"
    during = [(at, size) for at, size in world.asked if 2 < at < 99]
    assert 5 <= len(during) <= 20 and {size for _, size in during} == {1}
    assert all(later - earlier > 1 for (earlier, _), (later, _) in itertools.pairwise(during))
    assert world.now < 130
    figures = world.judge.figures()
    assert figures["critic/outages_total"] == 1 and 95 < figures["critic/outage_s_total"] < 125
    assert figures["critic/lost_groups_total"] == figures["critic/waiting_groups"] == 0


def test_past_the_budget_the_run_ends_with_the_critics_own_words() -> None:
    world = World(lambda now, _: votes("failed: HTTP 503: no healthy upstream"), outage_budget_s=60)
    with pytest.raises(RunFailed, match=r"outage_budget_s=60.*HTTP 503: no healthy upstream; see to"):
        world.run(3)
    assert 60 <= world.now < 80


def test_a_tier_without_workers_is_waited_for_too() -> None:
    class Dead(World):
        async def critique(self, *arguments: Any) -> tuple[Votes, ...]:
            said = await super().critique(*arguments)
            if self.now < 50:
                raise PartLost("critic worker 0 was lost")
            return said

    world = Dead(lambda now, _: votes())
    assert world.run(2) == [(votes(),) * 4] * 2
    assert world.now > 50


def test_a_response_that_fails_while_others_are_answered_is_given_up() -> None:
    world = World(lambda now, r: votes("failed: HTTP 500") if r.steps == ("b",) else votes())
    (group,) = world.run(1)
    assert [each == votes() for each in group] == [True, False, True, True]
    assert [size for _, size in world.asked] == [4] + [1] * (MAX_STRIKES - 1)
    assert world.judge.figures()["critic/lost_groups_total"] == 1


@pytest.mark.parametrize("reason", ["failed: HTTP 500", "deadline: critic lost: no vote on any response"])
def test_a_group_under_way_when_an_outage_begins_is_not_lost_for_one_that_was_just_answered(reason: str) -> None:
    num_said = 0

    def reply(now: float, request: JudgeRequest) -> Votes:
        nonlocal num_said
        num_said += 1
        return votes() if num_said <= len(GROUP) or now > 50 else votes(reason)

    assert World(reply).run(5) == [(votes(),) * 4] * 5


def test_a_late_response_is_not_sent_again_while_others_are_answered() -> None:
    world = World(lambda now, r: votes("deadline") if r.steps == ("b",) else votes())
    (group,) = world.run(1)
    assert group[1] == votes("deadline") and len(world.asked) == 1


def test_without_a_budget_nothing_waits() -> None:
    world = World(lambda now, _: votes("deadline"), outage_budget_s=0)
    assert world.run(1) == [(votes("deadline"),) * 4]
    assert world.now < 2


def endpoint_run(
    tmp_path: Path, server: Server, *, request_deadline_s: float = 0.0, **critic: object
) -> tuple[RunOutcome, dict[str, float]]:
    """A run of the real pipeline with a critic behind HTTP, everything else faked."""

    async def go() -> tuple[RunOutcome, dict[str, float]]:
        async with server as url:
            endpoint = EndpointConfig(
                base_url=url,
                model="judge",
                retry_wait_s=0.01,
                breaker_open_s=0.2,
                request_deadline_s=request_deadline_s,
            )
            config = make_config(
                critic={"backend": "endpoint", "endpoint": endpoint.model_dump(), "rubric": "paper", **critic},
                run={"num_updates": 3},
            )
            judge = EndpointJudge(config.critic, vote="majority", quorum=1)
            parts = fake_parts(tmp_path, config, judge=judge)
            try:
                outcome = await asyncio.wait_for(Pipeline(parts, RunState()).run(), 60)
            finally:
                await judge.close()
            return outcome, parts.tracker.rows[-2][1]  # type: ignore[attr-defined]

    return asyncio.run(go())


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the usual waits between two tries, for outages that last as much less in real time."""
    for name in ("POLL_S", "FIRST_PROBE_S"):
        monkeypatch.setattr(outage, name, getattr(outage, name) / 5)


WRONG = "Judgement: No\n<incorrect_steps>0</incorrect_steps>"


@pytest.mark.usefixtures("_hasty")
def test_a_run_goes_on_after_seconds_of_http_500_without_a_group_on_its_outcome_alone(tmp_path: Path) -> None:
    began: list[float] = []

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        began.append(time.monotonic())
        if len(began) > 4 and began[-1] - began[4] < 0.6:  # down in the midst of the run
            return web.Response(status=500, text="boom")
        return answer([WRONG] * body.get("n", 1))

    server = Server(handler)
    outcome, figures = endpoint_run(tmp_path, server)
    assert outcome.state.version == 3
    assert figures["critic/outcome_only_frac"] == 0 and figures["critic/outages_total"] >= 1
    down = [at for at in began if 0.2 < at - began[4] < 0.6]
    assert len(down) <= 20, "while it is down it is hardly asked"


@pytest.mark.usefixtures("_hasty")
def test_an_endpoint_that_stays_down_ends_the_run_with_its_own_words(tmp_path: Path) -> None:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "the model is being loaded"}}, status=503)

    with pytest.raises(RunFailed, match=r"outage_budget_s=0.5.*HTTP 503: the model is being loaded.*http://127"):
        endpoint_run(tmp_path, Server(handler), outage_budget_s=0.5)


@pytest.mark.usefixtures("_hasty")
def test_an_address_where_nobody_listens_ends_the_run_so_too(tmp_path: Path) -> None:
    class Gone(Server):
        async def __aenter__(self) -> str:
            url = await super().__aenter__()
            await self.runner.cleanup()
            return url

    async def handler(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        raise AssertionError

    with pytest.raises(RunFailed, match=r"outage_budget_s=0.5.*connection failed"):
        endpoint_run(tmp_path, Gone(handler), outage_budget_s=0.5)


async def always_wrong(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    return answer([WRONG] * body.get("n", 1))


@pytest.mark.usefixtures("_hasty")
def test_an_endpoint_that_takes_connections_and_says_nothing_is_waited_out(tmp_path: Path) -> None:
    # Silent for three deadlines: or a group that begins late, on a busy machine, is late beside one just answered.
    outcome, figures = endpoint_run(tmp_path, Server(always_wrong, silent_s=3), request_deadline_s=1)
    assert outcome.state.version == 3
    assert figures["critic/outcome_only_frac"] == figures["critic/lost_groups_total"] == 0
    assert figures["critic/outages_total"] == 1 and figures["critic/outage_s_total"] >= 3


@pytest.mark.usefixtures("_hasty")
def test_an_endpoint_that_never_says_anything_ends_the_run_with_its_deadline(tmp_path: Path) -> None:
    hole = Server(always_wrong, silent_s=1000)
    with pytest.raises(RunFailed, match=r"outage_budget_s=0.5.*no answer in 0\.3 s .*request_deadline_s"):
        endpoint_run(tmp_path, hole, request_deadline_s=0.3, outage_budget_s=0.5)
