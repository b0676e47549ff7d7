"""Keys that would change nothing in this composition: given on the command line, they are refused.

Invariant: only what the user wrote is refused; a preset's or default's idle keys are not the user's mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capo_ray.cli.schema import ConfigError
from capo_ray.config import TrainConfig
from capo_ray.credit.indifferent import SKIPPABLE

READS_CRITICS = frozenset({"critiques", "overall"})
"""Kinds of evidence that the critic tier makes."""

# Keys (one that ends in a dot stands for its whole section), when they are idle, and the rest of the sentence.
Rule = tuple[tuple[str, ...], Callable[[TrainConfig], bool], str]
RULES: tuple[Rule, ...] = (
    (
        (
            "data.path",
            "data.eval_path",
            "data.question_column",
            "data.answer_column",
            "data.answer_marker",
            "data.max_bad_rows",
            "data.split",
            "data.eval_split",
            "data.eval_frac",
        ),
        lambda c: c.data.kind == "chains",
        "with data.kind=chains, which makes its own problems; remove it or choose another data=…",
    ),
    (
        ("data.chain_steps",),
        lambda c: c.data.kind != "chains",
        "unless data.kind=chains; remove it or choose data=chains",
    ),
    (
        ("data.split", "data.eval_split"),
        lambda c: c.data.kind != "hub",
        "unless data.kind=hub; files are named by data.path and data.eval_path",
    ),
    (
        ("data.eval_frac",),
        lambda c: bool(c.data.eval_path),
        "beside data.eval_path, which names the held-out file; remove one of the two",
    ),
    (
        ("engine.gpu_memory_frac",),
        lambda c: c.engine.num_gpus == 0,
        "with engine.num_gpus=0; set engine.kv_cache_gib, or give the engine a GPU",
    ),
    (
        ("engine.kv_cache_gib",),
        lambda c: c.engine.num_gpus > 0,
        "with engine.num_gpus>0; set engine.gpu_memory_frac",
    ),
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
        ),
        lambda c: c.critic.backend != "vllm",
        "unless critic.backend=vllm, which alone holds a model in the cluster; remove it or choose that backend",
    ),
    (
        ("critic.rubric", "critic.temperature", "critic.top_p", "critic.max_tokens", "critic.chat_template"),
        lambda c: c.critic.backend == "calculator",
        "with critic.backend=calculator, which asks no model; remove it or choose another backend",
    ),
    (
        ("loss.correction_low", "loss.correction_high"),
        lambda c: c.loss.correction == "none",
        "with loss.correction=none; remove it or choose a correction",
    ),
    (
        ("learner.min_lr_frac",),
        lambda c: c.learner.schedule == "constant",
        "with learner.schedule=constant; remove it or choose learner.schedule=cosine",
    ),
    (
        ("tracking.project",),
        lambda c: not (c.tracking.wandb or c.tracking.mlflow),
        "without tracking.wandb or tracking.mlflow; remove it or choose tracking=wandb",
    ),
    (
        ("cluster.num_cpus", "cluster.object_store_mib"),
        lambda c: bool(c.cluster.address),
        "with cluster.address, which names a cluster that already has its size; remove one of the two",
    ),
    (
        ("weights.canary_tolerance",),
        lambda c: c.weights.canary_every == 0,
        "with weights.canary_every=0, which never compares; remove one of the two",
    ),
)


def refuse_useless(config: TrainConfig, given: Sequence[str]) -> None:
    """Raise for the first given key (`critic.num_votes`) or choice (`critic=`) that has no effect."""
    reads_critics = bool(READS_CRITICS & type(config.credit).needs)
    for key in given:
        if not reads_critics and key.startswith(("critic.", "critic=")):
            name = "critic=…" if key == "critic=" else key
            raise ConfigError(
                f"{name} has no effect with credit={config.credit.method}, which reads no critiques; "
                "remove it or choose credit=capo"
            )
        for keys, idle, reason in RULES:
            if (key in keys or any(k.endswith(".") and key.startswith(k) for k in keys)) and idle(config):
                raise ConfigError(f"{key} has no effect {reason}")
