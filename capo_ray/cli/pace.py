"""Which tier an update waits for: seconds of rollouts, critics and learner by the rates of `sizing.rates`.

The tiers work side by side (groups flow on one by one), so an update takes as long as the slowest; what the others wait
is idle. Answers and critiques are counted at the mean lengths below.
"""

from __future__ import annotations

from dataclasses import dataclass

from capo_ray.cli import memory
from capo_ray.cli.memory_ranks import DTYPE_BYTES, Model
from capo_ray.config import TrainConfig
from capo_ray.config.engine import EngineBase
from capo_ray.demand import critic_model, find
from capo_ray.sizing import kv_bytes_per_token
from capo_ray.sizing.rates import Decode, Train, decode_s, train_s

ANSWER_SHARE = 0.3  # of rollout.max_response_tokens, in the mean
CRITIQUE_SHARE = 0.17  # of critic.max_tokens
QUESTION_TOKENS = 200
RUBRIC_TOKENS = 600  # rubric and reference solution


@dataclass(frozen=True, slots=True)
class Tier:
    """A tier's seconds in an update, and the share of the update in which it waits."""

    role: str
    gpus: float
    seconds: float
    idle_frac: float


def estimate_pace(config: TrainConfig) -> list[Tier]:
    """The tiers' seconds; empty where one is not on GPUs, or its model or device is unknown."""
    device = memory.device_gib(config)
    engine, critic, learner = config.engine, config.critic, config.learner
    asked = find(config, "critic")
    judged = asked is not None and asked.model is not None
    policy = memory.policy_of(config)
    judge = memory.sized(critic_model(config)) if judged else policy
    on_gpus = engine.num_gpus and learner.num_gpus and (critic.num_gpus or not judged)
    if device is None or not on_gpus or policy.shape is None or judge.shape is None:
        return []
    responses = learner.groups_per_batch * config.rollout.group_size
    answer = ANSWER_SHARE * config.rollout.max_response_tokens
    in_flight = config.num_slots * config.rollout.group_size
    rollouts = _decode(config, engine, policy, config.model.dtype, device, in_flight, 0.0, answer)
    seconds = [
        ("rollout", engine.num_workers * engine.num_gpus, rollouts * learner.groups_per_batch / config.num_slots)
    ]
    if judged:
        prompt = QUESTION_TOKENS + RUBRIC_TOKENS + answer
        critique = CRITIQUE_SHARE * critic.max_tokens
        # The votes on a response share one prefill, so each is charged its part of it.
        votes = responses * critic.num_votes
        time = _decode(config, critic, judge, critic.dtype, device, votes, prompt, critique, critic.num_votes)
        seconds.append(("critic", critic.num_workers * critic.num_gpus, time))
    train = Train(
        num_params=policy.num_params,
        num_ranks=learner.num_ranks,
        tokens=responses * (QUESTION_TOKENS + answer),
        num_epochs=learner.num_epochs,
        checkpointing=learner.gradient_checkpointing,
        reference=config.loss.kl_coef > 0,
    )
    seconds.append(("learner", learner.num_ranks * learner.num_gpus, train_s(train)))
    slowest = max(time for _, _, time in seconds)
    return [Tier(role, gpus, time, 1 - time / slowest) for role, gpus, time in seconds]


def _decode(
    config: TrainConfig,
    part: EngineBase,
    model: Model,
    dtype: str,
    device: float,
    sequences: int,
    prompt: float,
    tokens: float,
    sharing: int = 1,
) -> float:
    """Seconds of a tier; `sharing` texts have one prompt in common, prefilled once."""
    assert model.shape is not None
    unit, tp = DTYPE_BYTES[dtype], part.tensor_parallel
    cache = memory.engine_memory("", part, model, dtype, device).terms[-1].num_bytes
    load = Decode(
        shape=model.shape,
        num_params=model.num_params,
        unit=unit,
        tensor_parallel=tp,
        num_engines=part.num_workers,
        sequences=sequences,
        prompt_tokens=prompt or QUESTION_TOKENS,
        tokens=tokens,
        max_num_seqs=part.max_num_seqs,
        cache_tokens=max(0.0, cache) / kv_bytes_per_token(model.shape, unit, tp),
    )
    return decode_s(load, sharing)


def whole_hours(tiers: list[Tier], num_updates: int) -> float:
    """Hours of all updates, without starts, checkpoints and evaluations."""
    return num_updates * max(tier.seconds for tier in tiers) / 3600


def to_words(tiers: list[Tier], num_updates: int) -> list[str]:
    """The estimate for people; a line that says so where there is none."""
    if not tiers:
        return ["no estimate: it needs all tiers on GPUs, models of known shape and cluster.gpu_memory_gib"]
    lines = []
    for tier in tiers:
        idle = f"   idle {tier.idle_frac:.0%}" if tier.idle_frac else ""
        lines.append(f"{tier.role:<13}{tier.gpus:>4g} GPUs {tier.seconds:>8.1f} s{idle}")
    slowest = max(tiers, key=lambda tier: tier.seconds)
    gpus = sum(tier.gpus for tier in tiers)
    busy = sum(tier.gpus * tier.seconds for tier in tiers) / (gpus * slowest.seconds)
    lines.append(f"an update takes as long as its slowest tier, {slowest.role}; the GPUs are {busy:.0%} busy")
    hours = whole_hours(tiers, num_updates)
    lines.append(
        f"{num_updates:,} updates take {hours:,.1f} h, {gpus * hours:,.0f} GPU-hours, without starts and evaluations"
    )
    return lines
