"""When keys of the other sections are idle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from capo_ray.cli.idle_critic_keys import Rule
from capo_ray.config import TrainConfig
from capo_ray.config.credit import TokenRewards
from capo_ray.config.curriculum import CurriculumConfig
from capo_ray.config.loss import LossConfig


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
    return config.loss.entropy_control != "none" and not config.credit.shares_bonus


def _stays_at_zero(config: TrainConfig) -> bool:
    """Whether the coefficient that AER steers begins at 0 and can never leave it."""
    loss = config.loss
    steered = loss.entropy_rate and loss.entropy_max_coef and loss.entropy_target_frac
    return loss.entropy_control == "aer" and not loss.entropy_coef and not steered


def _has_no_reference(config: TrainConfig) -> bool:
    """Whether neither the policy nor a reward model is set against a frozen model."""
    return config.loss.kl_coef == 0 and _rewarded_for(config) != "prime"


def _rewarded_for(config: TrainConfig) -> str:
    """The method whose objective the reward model is trained for; empty: there is none."""
    asked = config.credit.asked(TokenRewards)
    return asked.objective if asked is not None else ""


def _process_weight(config: TrainConfig) -> float:
    credit: Any = config.credit
    weight: float = credit.w_process
    return weight


def _has_ratio_one(config: TrainConfig) -> bool:
    """Whether policy and behaviour are the same numbers in every pass."""
    return config.loss.behaviour == "recompute" and config.learner.num_epochs == 1


def _names_files(kind: str, path: str) -> bool:
    """Whether a path of data stands for files, not for a data set or folder of which a split is to be chosen."""
    return kind != "hub" and not Path(path).expanduser().is_dir()


OTHER_RULES: tuple[Rule, ...] = (
    (
        ("run.from_zero", "run.changes_allowed"),
        lambda c: not c.resume,
        "without resume=RUN: a new run begins at update 0 with the settings given; remove it",
    ),
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
        ("model.chat_template_args",),
        lambda c: not c.model.chat_template,
        "with model.chat_template=false; remove it, or set that to true",
    ),
    (
        ("data.chain_steps",),
        lambda c: c.data.kind != "chains",
        "unless data.kind=chains; remove it or choose data=chains",
    ),
    (
        ("data.split",),
        lambda c: _names_files(c.data.kind, c.data.path),
        "where data.path names files, which are all read; remove it, or name a folder of several splits",
    ),
    (
        ("data.eval_split",),
        lambda c: not c.data.eval_path or _names_files(c.data.kind, c.data.eval_path),
        "unless data.eval_path names a data set or a folder of several splits; remove it, or add data.eval_path",
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
        lambda c: c.credit.method == "capo" and _process_weight(c) == 0,
        "with credit.w_process=0, which leaves nothing to grow; remove it or raise credit.w_process",
    ),
    (
        ("credit.temperature",),
        lambda c: c.credit.method == "pure" and _process_weight(c) == 0,
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
        ("learner.offload_reference",),
        lambda c: c.learner.num_gpus == 0 and c.reward_model.num_gpus == 0,
        "on CPUs, where the reference is in host memory already; remove it or give the learner a GPU",
    ),
    (
        ("learner.zero_stage",),
        lambda c: c.learner.backend == "torch",
        "with learner.backend=torch, whose one rank shards nothing; remove one of the two",
    ),
    (
        ("learner.offload_reference",),
        _has_no_reference,
        "where no reference is held; remove it or raise loss.kl_coef",
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
        lambda c: not _rewarded_for(c),
        "unless the credit method reads token rewards; remove it or choose credit=prime, istar, qrm or etpo",
    ),
    (
        ("reward_model.beta",),
        lambda c: _rewarded_for(c) not in ("prime", "istar"),
        "unless credit=prime or credit=istar, whose rewards are log-ratios; remove it or choose one of them",
    ),
    (
        ("reward_model.score",),
        lambda c: _rewarded_for(c) != "istar",
        "unless credit=istar, whose pairs are compared by it; remove it or choose that method",
    ),
    (
        ("reward_model.head", "reward_model.pair_scale", "reward_model.pair_margin"),
        lambda c: _rewarded_for(c) != "qrm",
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
        ("cluster.wait_s",),
        lambda c: not (c.cluster.address or os.environ.get("RAY_ADDRESS")),
        "without cluster.address: no node joins a cluster of the run's own; remove it or name the cluster",
    ),
    (
        ("cluster.num_nodes",),
        lambda c: c.cluster.gpus_per_node == 0,
        "without cluster.gpus_per_node; give that too",
    ),
    (
        ("cluster.num_nodes", "cluster.gpus_per_node", "cluster.gpu_memory_gib"),
        lambda c: not (c.engine.num_gpus or c.learner.num_gpus or c.critic.num_gpus or c.reward_model.num_gpus),
        "where no actor asks for a GPU; remove it, or choose engine=gpu learner=gpu",
    ),
    (
        ("weights.canary_tolerance",),
        lambda c: c.weights.canary_every == 0,
        "with weights.canary_every=0, which never compares; remove one of the two",
    ),
)
