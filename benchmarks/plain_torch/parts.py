"""A run's parts in this process: the shipped pipeline, credit, learner and critics around an engine on bare tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capo_ray.checkpoint import CheckpointStore
from capo_ray.cli.compose import compose_train
from capo_ray.config import TrainConfig
from capo_ray.config.credit.requests import Critiques, TokenRewards
from capo_ray.critics import RuledJudge
from capo_ray.critics.build import build_judge
from capo_ray.flow import Parts
from capo_ray.flow.direct import Direct
from capo_ray.ledger import SqliteLedger
from capo_ray.problems import asset_path, build_problems
from capo_ray.problems.chains import true_wrong_steps, unasked_steps
from capo_ray.protocols import Judge, RewardModel
from capo_ray.verifiers import VerifierPool
from plain_torch.arms import Arm
from plain_torch.critics import AtRandom, Shuffled, oracle
from plain_torch.engine import PlainEngine
from plain_torch.learner import OwnLogprobs, PlainLearner, PlainRewardModel

PLAIN = ("learner.backend=torch", "verifier.kind=exact", "stream.max_age=0", "data=chains")
"""One process and one thread: every run of a seed is the same to the last digit."""


def compose(arm: Arm, critic: str, overrides: Sequence[str], num_operations: int) -> TrainConfig:
    """The configuration of an arm whose critic is a model directory, `calculator` or `oracle:P,R`.

    The arm's own overrides come last.
    """
    words = [*PLAIN, *overrides, f"data.chain_steps={num_operations}"]
    # Three tokens a step, a dozen around the verdict, and the list with every step in it.
    room = 7 * (num_operations + 1) + 16
    judged = [f"critic.max_tokens={room}", "critic.max_model_len=1024", "critic.max_outcome_only_frac=1"]
    if (arm.judge or critic).startswith("oracle:"):
        judged = ["critic.rubric=every_step", "critic.max_outcome_only_frac=1"]
    elif critic == "calculator":
        judged = ["critic=calculator", "critic.calculator_modulus=10", "critic.max_outcome_only_frac=1"]
    else:
        judged.append(f"critic.model={critic}")
    return compose_train([*words, *(judged if reads_critiques(arm) else ()), *arm.overrides])


def reads_critiques(arm: Arm) -> bool:
    """Whether the credit rule of an arm asks critics."""
    credit = [word for word in arm.overrides if word.startswith("credit")]
    return compose_train(credit).credit.asked(Critiques) is not None


def build_parts(
    config: TrainConfig, arm: Arm, critic: str, folder: Path, watcher: Any
) -> tuple[Parts, PlainEngine | None]:
    """The parts of a run, and the engine of its critic where that is a model.

    Ledger and checkpoints are in `folder`; `watcher` tracks the run and shows what goes on.
    """
    path = str(asset_path(config.model.path, "policy"))
    is_oracle = (arm.judge or critic).startswith("oracle:")
    has_model = config.credit.asked(Critiques) and config.critic.backend == "vllm" and not is_oracle
    judged_by = PlainEngine(asset_path(config.critic.model, "critic")) if has_model else None
    engine, learner = PlainEngine(path, config.run.seed), PlainLearner(config, path)
    parts = Parts(
        config=config,
        tokenizer=engine.tokenizer,
        problems=build_problems(config.data, config.run.seed),
        engine=engine,
        verifier=VerifierPool(config.verifier),
        judge=_build_judge(config, arm, critic, judged_by),
        learner=learner,
        publisher=Direct(learner, engine),
        reward_model=_build_reward_model(config, arm, path),
        ledger=SqliteLedger(folder / "ledger.sqlite", "run"),
        checkpoints=CheckpointStore(folder / "checkpoints", 1),
        tracker=watcher,
        transcripts=watcher,
        progress=watcher,
        step_truth=true_wrong_steps,
    )
    return parts, judged_by


def _build_judge(config: TrainConfig, arm: Arm, critic: str, engine: PlainEngine | None) -> Judge | None:
    asked = config.credit.asked(Critiques)
    if asked is None:
        return None
    if arm.judge.startswith("oracle:"):
        critic = arm.judge
    judge: Judge
    if critic.startswith("oracle:"):
        judge = oracle(config, asked, critic.removeprefix("oracle:"))
    else:
        built = build_judge(
            config.critic,
            vote=asked.vote,
            quorum=asked.quorum,
            engine=engine,
            tokenizer=engine.tokenizer if engine is not None else None,
        )
        judge = RuledJudge(built, unasked_steps) if config.critic.flag_unasked else built
    if arm.judge == "shuffled":
        return Shuffled(judge, config.run.seed)
    return AtRandom(judge, config.run.seed, config.learner.groups_per_batch) if arm.judge == "random" else judge


def _build_reward_model(config: TrainConfig, arm: Arm, path: str) -> RewardModel | None:
    asked = config.credit.asked(TokenRewards)
    if asked is None:
        return None
    return OwnLogprobs() if arm.rewards == "logprobs" else PlainRewardModel(config, path, asked)
