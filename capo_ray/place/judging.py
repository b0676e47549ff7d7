"""A judge and the engine that its critic runs on, free of Ray: for critic workers, and for commands of one process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from capo_ray.config import TrainConfig
from capo_ray.config.sections import CriticConfig
from capo_ray.critics import RuledJudge, build_judge
from capo_ray.critics.canary import JudgeWithStats
from capo_ray.critics.guarded import StoreDoor
from capo_ray.engines import EngineSpec
from capo_ray.problems import asset_path, true_wrong_steps, unasked_steps

if TYPE_CHECKING:
    from capo_ray.engines import VllmEngine


def engine_spec(config: TrainConfig) -> EngineSpec | None:
    """The engine of a critic; only `critic.backend=vllm` has one."""
    if config.critic.backend != "vllm":
        return None
    return EngineSpec.of(
        config.critic,
        model_path=str(asset_path(config.critic.model, "critic")),
        dtype=config.critic.dtype,
        max_model_len=config.critic.max_model_len,
        seed=config.run.seed,
        takes_weights=False,
        deadline_s=config.critic.deadline_s,
        start_deadline_s=config.engine.start_deadline_s,
    )


async def open_judge(
    spec: EngineSpec | None, critic: CriticConfig, vote: str, quorum: int, store: StoreDoor | None
) -> tuple[JudgeWithStats, VllmEngine | None]:
    """The judge, and its engine, started, where it has one: whoever asked for it closes both.

    Raises `ValueError` on a configuration that cannot work.
    """
    engine = await open_engine(spec)
    return judge_on(engine, critic, vote, quorum, store), engine


async def open_engine(spec: EngineSpec | None) -> VllmEngine | None:
    """The engine, started; None where the critic has none."""
    if spec is None:
        return None
    from capo_ray.engines import VllmEngine  # it imports torch, which critics without an engine of their own do without

    engine = VllmEngine(spec)
    await asyncio.to_thread(engine.start)
    return engine


def judge_on(
    engine: VllmEngine | None, critic: CriticConfig, vote: str, quorum: int, store: StoreDoor | None
) -> JudgeWithStats:
    """The judge on a started engine, or on none; several may share one. Raises `ValueError` as `open_judge`."""
    if engine is None:
        judge = build_judge(critic, vote=vote, quorum=quorum, store=store, truth=true_wrong_steps)
    else:
        from capo_ray.weights.checkpoint import files_revision

        path = engine.spec.model_path
        revision = files_revision(path)  # votes of a store are those of what the directory held then, not holds now
        judge = build_judge(
            critic, vote=vote, quorum=quorum, store=store, engine=engine, tokenizer=engine.tokenizer,
            model_revision=f"{path}@{revision}" if revision else path,
        )  # fmt: skip
    return RuledJudge(judge, unasked_steps) if critic.flag_unasked else judge
