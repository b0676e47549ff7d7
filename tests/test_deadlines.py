"""Every deadline key is held against the object that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from pydantic import BaseModel

from capo_ray.config import TrainConfig
from capo_ray.critics.endpoint import EndpointJudge
from capo_ray.flow.budgets import batch_deadline_s
from capo_ray.place import build
from capo_ray.place.cluster import Joining
from capo_ray.place.placement import Places
from capo_ray.place.watch import ClusterWatch
from capo_ray.verifiers import VerifierPool


def deadline_keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The dotted names of all keys whose name ends in `deadline_s`, sections within sections included."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from deadline_keys(info.annotation, f"{path}{name}.")
        elif name.endswith("deadline_s"):
            yield path + name


def rollout(config: TrainConfig) -> Any:
    return build.build_rollout_pool(config, Places(config))


def critics(config: TrainConfig) -> Any:
    return build.build_critic_pool(config, Path("run"), Places(config))


def judge(config: TrainConfig) -> Any:
    endpoint = config.critic.endpoint.model_copy(update={"base_url": "http://judge/v1", "model": "judge"})
    return EndpointJudge(config.critic.model_copy(update={"endpoint": endpoint}), vote="majority", quorum=1)


def learner(config: TrainConfig) -> Any:
    return build.build_learner(config, Places(config))


def reward_model(config: TrainConfig) -> Any:
    return build.build_reward_model(config, Places(config))


OWNERS: dict[str, Callable[[TrainConfig], list[float]]] = {
    "rollout.deadline_s": lambda c: [
        build.policy_engine(c).deadline_s,
        rollout(c)._config.rollout.deadline_s,
        batch_deadline_s(c) - batch_deadline_s(with_key(c, "rollout.deadline_s", 1.0)) + 1.0,
    ],
    "engine.start_deadline_s": lambda c: [
        build.policy_engine(c).start_deadline_s,
        build.critic_engine(c).start_deadline_s,  # type: ignore[union-attr]
        rollout(c).pool.start_deadline_s,
        critics(c).pool.start_deadline_s,
        build.build_verifier_tier(c).pool.start_deadline_s,
    ],
    "engine.step_deadline_s": lambda c: [build.policy_engine(c).step_deadline_s],
    "critic.step_deadline_s": lambda c: [build.critic_engine(c).step_deadline_s],  # type: ignore[union-attr]
    "critic.deadline_s": lambda c: [
        build.critic_engine(c).deadline_s,  # type: ignore[union-attr]
        critics(c)._critic.deadline_s,
        judge(c)._config.deadline_s,
    ],
    "critic.critique_deadline_s": lambda c: [judge(c)._config.critique_deadline_s],
    "critic.endpoint.request_deadline_s": lambda c: [judge(c)._endpoint._endpoint.request_deadline_s],
    "verifier.deadline_s": lambda c: [
        build.build_verifier_tier(c)._verifier.deadline_s,
        VerifierPool(c.verifier)._config.deadline_s,
    ],
    "run.checkpoint_deadline_s": lambda c: [learner(c)._write_deadline_s, reward_model(c)._write_deadline_s],
    "learner.deadline_s": lambda c: [learner(c).deadline_s, reward_model(c).deadline_s],
    "weights.deadline_s": lambda c: [
        build.policy_engine(c).swap_deadline_s,
        rollout(c)._config.weights.deadline_s,
    ],
    "cluster.deadline_s": lambda c: [ClusterWatch(c).deadline_s],
    "cluster.start_deadline_s": lambda c: [Joining(c).deadline_s],
}


def with_key(config: TrainConfig, key: str, value: float) -> TrainConfig:
    raw = config.model_dump()
    *sections, name = key.split(".")
    at = raw
    for section in sections:
        at = at[section]
    at[name] = value
    return TrainConfig.model_validate(raw)


def test_every_deadline_key_has_an_owner_that_is_asked_here() -> None:
    assert set(deadline_keys(TrainConfig)) == set(OWNERS)


@pytest.mark.parametrize("key", sorted(deadline_keys(TrainConfig)))
def test_the_object_that_waits_has_the_deadline_that_was_given(key: str) -> None:
    for value in (1234.5, 7000.25):
        found = OWNERS[key](with_key(TrainConfig(), key, value))
        assert found == [value] * len(found) and found
    assert not ray.is_initialized(), "what is only built starts nothing"
