"""When keys of the critic tier are idle, in compositions that read critiques."""

from __future__ import annotations

from collections.abc import Callable

from capo_ray.config import TrainConfig
from capo_ray.config.credit import Critiques, asks_once
from capo_ray.credit.indifferent import SKIPPABLE

Rule = tuple[tuple[str, ...], Callable[[TrainConfig], bool], str]
"""Keys (one that ends in a dot stands for its whole section), when they are idle, and the rest of the sentence."""


def _vote(config: TrainConfig) -> str:
    asked = config.credit.asked(Critiques)
    return asked.vote if asked is not None else ""


CRITIC_RULES: tuple[Rule, ...] = (
    (
        ("critic.gpu_memory_frac",),
        lambda c: c.critic.num_gpus == 0,
        "with critic.num_gpus=0; set critic.kv_cache_gib, or give the critic a GPU",
    ),
    (
        ("critic.kv_cache_gib",),
        lambda c: c.critic.num_gpus > 0,
        "with critic.num_gpus>0; set critic.gpu_memory_frac",
    ),
    (
        ("critic.endpoint.",),
        lambda c: c.critic.backend != "endpoint",
        "unless critic.backend=endpoint; remove it or choose that backend",
    ),
    (
        ("critic.skip",),
        lambda c: c.critic.skip != "none" and c.credit.method not in SKIPPABLE,
        "with this credit method, whose advantages critiques can change in every group; remove it",
    ),
    (
        ("credit.vote", "credit.quorum", "critic.num_votes", "critic.early_stop"),
        lambda c: c.critic.backend == "calculator",
        "with critic.backend=calculator, whose votes are all the same; remove it or choose another backend",
    ),
    (
        ("critic.with_calculator",),
        lambda c: c.critic.backend == "calculator",
        "with critic.backend=calculator, which is that vote already; remove it or choose another backend",
    ),
    (
        ("critic.early_stop",),
        lambda c: c.critic.num_votes == 1 or _vote(c) in ("average", "greedy"),
        "with a single vote or an average, which every vote changes; remove it or choose another credit.vote",
    ),
    (
        ("critic.early_stop",),
        lambda c: c.critic.with_calculator,
        "with critic.with_calculator=true, where all votes are asked for; remove one of the two",
    ),
    (
        ("critic.canary_path", "critic.canary_min_recall"),
        lambda c: c.critic.canary_every == 0,
        "with critic.canary_every=0, which judges no canaries; raise it, or remove this",
    ),
    (
        ("critic.temperature", "critic.top_p"),
        lambda c: c.critic.backend == "endpoint" and c.critic.endpoint.parameters == "reasoning",
        "with critic.endpoint.parameters=reasoning, which sends neither; remove it",
    ),
    (
        ("critic.top_p",),
        lambda c: c.critic.temperature == 0,
        "with critic.temperature=0, which takes the likeliest token; remove it or raise critic.temperature",
    ),
    (
        ("critic.critique_deadline_s",),
        lambda c: c.critic.backend == "calculator" or 0 < c.critic.deadline_s <= c.critic.critique_deadline_s,
        "unless it is shorter than critic.deadline_s and the critic is a model; lower it or remove it",
    ),
    (
        ("critic.hedge_after_s",),
        lambda c: c.critic.num_workers == 1 or c.critic.max_retries == 0,
        "unless critic.num_workers>1 and critic.max_retries>0: a second copy goes to another worker",
    ),
    (
        ("critic.calculator_modulus",),
        lambda c: c.critic.backend != "calculator" and not c.critic.with_calculator,
        "unless critic.backend=calculator or critic.with_calculator=true; remove it or choose one of them",
    ),
    (
        (
            "critic.model",
            "critic.dtype",
            "critic.num_gpus",
            "critic.placement",
            "critic.tensor_parallel",
            "critic.max_num_seqs",
            "critic.max_model_len",
            "critic.kv_cache_gib",
            "critic.gpu_memory_frac",
            "critic.max_batched_tokens",
            "critic.extra",
            "critic.step_deadline_s",
        ),
        lambda c: c.critic.backend != "vllm",
        "unless critic.backend=vllm, which alone holds a model in the cluster; remove it or choose that backend",
    ),
    (
        (
            "critic.rubric",
            "critic.show_solution",
            "critic.temperature",
            "critic.top_p",
            "critic.max_tokens",
            "critic.chat_template",
            "critic.constrain",
            "critic.store",
        ),
        lambda c: c.critic.backend == "calculator",
        "with critic.backend=calculator, which asks no model; remove it or choose another backend",
    ),
    (
        ("critic.num_votes", "critic.temperature", "critic.top_p"),
        lambda c: asks_once(_vote(c)),
        "with credit.vote=greedy, which asks once at temperature 0; remove it or choose another vote",
    ),
)
