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
from capo_ray.place.cluster import Joining
from capo_ray.place.placement import Places
from capo_ray.place.role import Site
from capo_ray.place.roles import critic, learner, reward_model, rollout, verifier
from capo_ray.place.watch import ClusterWatch
from capo_ray.verifiers import VerifierPool


def deadline_keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The dotted names of all keys whose name ends in `deadline_s`, sections within sections included."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from deadline_keys(info.annotation, f"{path}{name}.")
        elif name.endswith("deadline_s"):
            yield path + name


def part(role: Any, config: TrainConfig) -> Any:
    return role.build(Site(config, Path("run"), Places(config)))


def judge(config: TrainConfig) -> Any:
    endpoint = config.critic.endpoint.model_copy(update={"base_url": "http://judge/v1", "model": "judge"})
    return EndpointJudge(config.critic.model_copy(update={"endpoint": endpoint}), vote="majority", quorum=1)


OWNERS: dict[str, Callable[[TrainConfig], list[float]]] = {
    "rollout.deadline_s": lambda c: [
        rollout.engine_spec(c).deadline_s,
        part(rollout, c)._config.rollout.deadline_s,
        batch_deadline_s(c) - batch_deadline_s(with_key(c, "rollout.deadline_s", 1.0)) + 1.0,
    ],
    "engine.start_deadline_s": lambda c: [
        rollout.engine_spec(c).start_deadline_s,
        critic.engine_spec(c).start_deadline_s,  # type: ignore[union-attr]
        part(rollout, c).pool.start_deadline_s,
        part(critic, c).pool.start_deadline_s,
        part(verifier, c).pool.start_deadline_s,
    ],
    "engine.step_deadline_s": lambda c: [rollout.engine_spec(c).step_deadline_s],
    "critic.step_deadline_s": lambda c: [critic.engine_spec(c).step_deadline_s],  # type: ignore[union-attr]
    "critic.deadline_s": lambda c: [
        critic.engine_spec(c).deadline_s,  # type: ignore[union-attr]
        part(critic, c)._critic.deadline_s,
        judge(c)._config.deadline_s,
    ],
    "critic.critique_deadline_s": lambda c: [judge(c)._config.critique_deadline_s],
    "critic.endpoint.request_deadline_s": lambda c: [judge(c)._endpoint._endpoint.request_deadline_s],
    "verifier.deadline_s": lambda c: [
        part(verifier, c)._verifier.deadline_s,
        VerifierPool(c.verifier)._config.deadline_s,
    ],
    "run.checkpoint_deadline_s": lambda c: [
        part(learner, c)._files_deadline_s,
        part(reward_model, c)._files_deadline_s,
    ],
    "learner.deadline_s": lambda c: [part(learner, c).deadline_s, part(reward_model, c).deadline_s],
    "weights.deadline_s": lambda c: [
        rollout.engine_spec(c).swap_deadline_s,
        part(rollout, c)._config.weights.deadline_s,
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
