"""The reward model's group behind its door: who gets which response, and that every answer comes home."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.tiny import write_tiny_model
from capo_ray.cli.compose import compose_train
from capo_ray.config import TrainConfig
from capo_ray.demand import policy_model
from capo_ray.engines import HfTokenizer
from capo_ray.flow.state import read_checkpoint
from capo_ray.learners.reward_batch import labelled_trajectories
from capo_ray.place.role import path_of
from capo_ray.place.roles.reward_model import RewardModelActors, require_policys_tokens
from capo_ray.place.train import _restore
from capo_ray.protocols import RunFailed
from capo_ray.types import UpdateReport
from tests.fakes import FakeRewardModel, fake_parts
from tests.reward_group import make_groups
from tests.test_pipeline import make_config, run_until_killed


class Reply:
    """What a call returns: done at once."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def future(self) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(self._value)
        return done


class Rank:
    """Rewards every token by the first token of its response; notes the calls in order."""

    def __init__(self, index: int, calls: list[tuple[int, str, Any]]) -> None:
        self._index, self._calls = index, calls

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Reply:
            self._calls.append((self._index, method, arguments))
            return Reply(self._answer(method, arguments))

        return type("Method", (), {"remote": staticmethod(remote)})

    def _answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "update":
            return UpdateReport(1, {}, 0.0)
        samples = [w.sample for cell in arguments[0] for w in cell]
        return [(float(s.token_ids[-s.num_response_tokens]),) * s.num_response_tokens for s in samples]


def test_responses_are_dealt_over_the_ranks_and_their_rewards_come_back_in_order() -> None:
    calls: list[tuple[int, str, Any]] = []
    config = TrainConfig.model_validate({"reward_model": {"num_ranks": 2}, "learner": {"microbatch_tokens": 40}})
    groups = make_groups(4)
    trajectories = labelled_trajectories(groups)

    async def talk() -> Any:
        actors = RewardModelActors(config, lambda rank: Rank(rank, calls), Path("run"))  # type: ignore[arg-type, return-value]
        rewards, report, again = await asyncio.gather(
            actors.token_rewards(trajectories), actors.update(groups), actors.token_rewards(trajectories[:1])
        )
        assert await actors.token_rewards([]) == ()
        assert report.version == actors.version == 1
        return rewards, again

    rewards, again = asyncio.run(talk())
    expected = [(float(t.response.token_ids[0]),) * len(t.response.token_ids) for t in trajectories]
    assert list(rewards) == expected and list(again) == expected[:1]
    orders = [[(method, len(arguments[0])) for rank, method, arguments in calls if rank == i] for i in (0, 1)]
    assert orders[0] == orders[1], "every rank sees the same calls in the same order, with as many cells"
    updates = [arguments for _, method, arguments in calls if method == "update"]
    assert updates[0][1] == updates[1][1] and len(updates[0][1]) == 9
    dealt = [[w.sample.key for cell in column for w in cell] for column, _ in updates]
    assert sorted(map(str, dealt[0] + dealt[1])) == sorted(str(t.key) for t in trajectories) and all(dealt)


def test_a_call_to_the_ranks_that_is_given_up_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capo_ray.place.calls.cancel", lambda ref: None)
    monkeypatch.setattr(Reply, "future", lambda self: Future())
    said: list[dict[str, Any]] = []

    async def give_up() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        actors = RewardModelActors(TrainConfig(), lambda rank: Rank(rank, []), Path("run"))  # type: ignore[arg-type, return-value]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(actors.update(make_groups(1)), 0.05)
        await asyncio.sleep(0.05)
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(give_up())
    assert said == []


def test_a_reward_model_with_other_tokens_is_refused_before_anything_starts(tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_tiny_model(other, vocab=list("abc"))
    config = compose_train(["credit=qrm", f"reward_model.path={other}"])
    policy = HfTokenizer(path_of(policy_model(config)))
    with pytest.raises(RunFailed, match=r"must hold a model with the policy's tokenizer: '.*' is \d+ there and"):
        require_policys_tokens(config, policy)
    require_policys_tokens(compose_train(["credit=qrm", f"reward_model.path={path_of(policy_model(config))}"]), policy)
    require_policys_tokens(compose_train(["credit=qrm"]), policy)


def test_a_reward_model_of_another_version_than_the_run_is_refused(tmp_path: Path) -> None:
    config = make_config("prime", run={"num_updates": 8, "checkpoint_every": 3})
    parts = fake_parts(tmp_path, config, judge=None, reward_model=FakeRewardModel())
    run_until_killed(parts, 4)

    class Shards:
        def __init__(self, version: int) -> None:
            self._version = version

        async def load(self, path: str) -> int:
            return self._version

    latest = parts.checkpoints.latest()
    assert latest is not None
    version = read_checkpoint(latest)[0].version
    groups = {"learner": Shards(version), "reward_model": Shards(version - 1)}
    actors: Any = SimpleNamespace(groups=lambda: groups)
    later = config.model_copy(update={"resume": str(tmp_path)})
    with pytest.raises(
        RunFailed, match=rf"expected reward_model shards of version {version} in .*, got version {version - 1}"
    ):
        asyncio.run(_restore(later, latest, parts.checkpoints, actors, parts.ledger, None))
