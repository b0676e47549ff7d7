"""Keys that would change nothing in this composition: given on the command line, they are refused.

Invariant: only what the user wrote is refused; a preset's or default's idle keys are not the user's mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from capo_ray.cli.schema import ConfigError
from capo_ray.config import TrainConfig
from capo_ray.config.curriculum import CurriculumConfig
from capo_ray.config.loss import LossConfig
from capo_ray.credit.indifferent import SKIPPABLE

READS_CRITICS = frozenset({"critiques", "overall"})
"""Kinds of evidence that the critic tier makes."""


def _never_overlong(config: TrainConfig) -> bool:
    """Whether DAPO's punishment, once it is on, is 0 for every length that sampling allows."""
    credit: Any = config.credit
    if credit.method != "dapo" or not credit.overlong_max_tokens:
        return False
    unpunished: int = credit.overlong_max_tokens - credit.overlong_buffer_tokens
    return config.rollout.max_response_tokens <= unpunished


def _leaves_out_likelihood(config: TrainConfig) -> bool:
    """Whether a method that scores the answer gives its likelihood no weight."""
    credit: Any = config.credit
    if credit.method == "acpo":
        return not credit.beta and (not credit.kappa or credit.stage2_from == 1)
    return credit.method == "mig" and not credit.w_gain and not credit.w_sft


def _gives_no_bonus(config: TrainConfig) -> bool:
    """Whether there is an entropy bonus of which the credit method gives no token a share in the whole run."""
    shares = config.credit.reference_from != 0 and getattr(config.credit, "entropy_frac", 1) > 0
    return config.loss.entropy_control != "none" and not shares


def _stays_at_zero(config: TrainConfig) -> bool:
    """Whether the coefficient that AER steers begins at 0 and can never leave it."""
    loss = config.loss
    steered = loss.entropy_rate and loss.entropy_max_coef and loss.entropy_target_frac
    return loss.entropy_control == "aer" and not loss.entropy_coef and not steered


def _has_ratio_one(config: TrainConfig) -> bool:
    """Whether policy and behaviour are the same numbers in every pass."""
    return config.loss.behaviour == "recompute" and config.learner.num_epochs == 1


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
        lambda c: c.critic.num_votes == 1 or getattr(c.credit, "vote", "") in ("average", "greedy"),
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
        ("loss.correction_low", "loss.correction_high"),
        lambda c: c.loss.correction == "none",
        "with loss.correction=none; remove it or choose a correction",
    ),
    (
        ("loss.correction_low",),
        lambda c: c.loss.correction == "truncate",
        "with loss.correction=truncate, which only bounds from above; remove it or choose another correction",
    ),
    (
        ("credit.ramp_frac",),
        lambda c: c.credit.method == "capo" and c.credit.w_process == 0,
        "with credit.w_process=0, which leaves nothing to grow; remove it or raise credit.w_process",
    ),
    (
        ("credit.temperature",),
        lambda c: c.credit.method == "pure" and c.credit.w_process == 0,
        "with credit.w_process=0, which leaves the outcome alone; remove it or raise credit.w_process",
    ),
    (
        ("credit.overlong_max_tokens", "credit.overlong_buffer_tokens"),
        _never_overlong,
        "with this rollout.max_response_tokens, which no response exceeds; let overlong_max_tokens less "
        "overlong_buffer_tokens be below it",
    ),
    (
        ("credit.answer_cue",),
        _leaves_out_likelihood,
        "where no weight reads the answer's likelihood; remove it or raise a weight",
    ),
    (
        ("critic.num_votes", "critic.temperature", "critic.top_p"),
        lambda c: getattr(c.credit, "vote", "") == "greedy",
        "with credit.vote=greedy, which asks once at temperature 0; remove it or choose another vote",
    ),
    (
        ("loss.entropy_coef",),
        lambda c: c.loss.entropy_control == "none",
        "with loss.entropy_control=none; add loss.entropy_control=fixed, lica or aer",
    ),
    (
        ("loss.entropy_target_frac", "loss.entropy_rate", "loss.entropy_max_coef", "loss.entropy_pass_rate"),
        lambda c: c.loss.entropy_control != "aer",
        "unless loss.entropy_control=aer, which alone is steered; remove it or choose that control",
    ),
    (
        ("loss.entropy_control", "loss.entropy_rate", "loss.entropy_max_coef", "loss.entropy_target_frac"),
        _stays_at_zero,
        "with loss.entropy_control=aer from loss.entropy_coef=0, unless loss.entropy_rate, loss.entropy_max_coef and "
        "loss.entropy_target_frac are all > 0; raise them, or choose loss.entropy_control=none",
    ),
    (
        ("loss.entropy_target_frac",),
        lambda c: c.loss.entropy_rate == 0,
        "with loss.entropy_rate=0, which steers nothing; remove it or raise loss.entropy_rate",
    ),
    (
        tuple(f"loss.{name}" for name in LossConfig.model_fields if name.startswith("entropy_")),
        _gives_no_bonus,
        "where the credit gives no token a share of the bonus; raise credit.stage2_from or credit.entropy_frac",
    ),
    (
        ("credit.entropy_frac",),
        lambda c: c.loss.entropy_control == "none",
        "with loss.entropy_control=none, which gives no bonus to share out; remove it or choose a control",
    ),
    (
        ("credit.entropy_frac",),
        lambda c: c.credit.reference_from == 0,
        "with credit.stage2_from=0, which leaves out the first stage; remove it or raise credit.stage2_from",
    ),
    (
        ("loss.clip_low", "loss.clip_high"),
        _has_ratio_one,
        "with loss.behaviour=recompute and learner.num_epochs=1, where every ratio is 1; raise learner.num_epochs",
    ),
    (
        ("loss.covariance", "loss.covariance_frac", "loss.covariance_kl_coef"),
        lambda c: c.loss.covariance == "kl" and _has_ratio_one(c),
        "with loss.behaviour=recompute and learner.num_epochs=1, where KL-cov has no slope; raise learner.num_epochs, "
        "or take loss.covariance=clip",
    ),
    (
        ("loss.covariance_frac",),
        lambda c: c.loss.covariance == "none",
        "with loss.covariance=none; add loss.covariance=clip or kl",
    ),
    (
        ("loss.covariance_low", "loss.covariance_high"),
        lambda c: c.loss.covariance != "clip",
        "unless loss.covariance=clip; remove it or choose that control",
    ),
    (
        ("loss.covariance_kl_coef",),
        lambda c: c.loss.covariance != "kl",
        "unless loss.covariance=kl; remove it or choose that control",
    ),
    (
        ("loss.kl_coef", "credit.kappa"),
        lambda c: c.credit.reference_from == 1,
        "with credit.stage2_from=1, which never comes to a second stage; remove it or lower credit.stage2_from",
    ),
    (
        ("credit.cut_top_frac", "credit.cut_window", "credit.cut_min_tokens", "credit.cut_max_steps"),
        lambda c: c.credit.segmenter != "entropy",
        "unless credit.segmenter=entropy; remove it or choose that segmenter",
    ),
    (
        tuple(f"data.curriculum.{name}" for name in CurriculumConfig.model_fields if name != "kind"),
        lambda c: c.data.curriculum.kind == "none",
        "with data.curriculum.kind=none; add data.curriculum.kind=pass_rate",
    ),
    (
        ("data.curriculum.late_low", "data.curriculum.late_high"),
        lambda c: c.data.curriculum.late_from == 1,
        "with data.curriculum.late_from=1, which never comes to the late band; lower it, or remove this",
    ),
    (
        ("data.curriculum.low", "data.curriculum.high"),
        lambda c: c.data.curriculum.late_from == 0,
        "with data.curriculum.late_from=0, where the late band holds from the start; raise it, or remove this",
    ),
    (
        tuple(
            f"data.curriculum.{name}" for name in CurriculumConfig.model_fields if name not in ("kind", "fresh_frac")
        ),
        lambda c: c.data.curriculum.fresh_frac == 1,
        "with data.curriculum.fresh_frac=1, which repeats no problem; lower it, or remove this",
    ),
    (
        ("reward_model.",),
        lambda c: "token_rewards" not in c.credit.needs,
        "unless the credit method reads token rewards; remove it or choose credit=prime, istar, qrm or etpo",
    ),
    (
        ("reward_model.beta",),
        lambda c: c.credit.method not in ("prime", "istar"),
        "unless credit=prime or credit=istar, whose rewards are log-ratios; remove it or choose one of them",
    ),
    (
        ("reward_model.head", "reward_model.pair_scale", "reward_model.pair_margin"),
        lambda c: c.credit.method != "qrm",
        "unless credit=qrm, whose objective they belong to; remove it or choose that method",
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
