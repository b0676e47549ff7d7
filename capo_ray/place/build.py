"""Builds the parts of a run from its configuration: which actor hosts what, with how many resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.actor import ActorHandle

from capo_ray.config import TrainConfig
from capo_ray.config.credit import Critiques, TokenRewards
from capo_ray.config.sections import CriticConfig, EngineConfig
from capo_ray.engines import EngineSpec, HfTokenizer
from capo_ray.learners.spec import LearnerSpec, RewardSpec
from capo_ray.place.face import spawn
from capo_ray.place.learner import LearnerActors
from capo_ray.place.placement import Places
from capo_ray.place.ranks import PINGS, WRITING
from capo_ray.place.reward_model import RewardModelActors
from capo_ray.place.store import StoreTier
from capo_ray.place.tiers import CriticPool, RolloutPool, VerifierTier
from capo_ray.place.workers import CriticWorker, LearnerRank, RewardModelRank, RolloutWorker, VerifierWorker
from capo_ray.problems import asset_path
from capo_ray.protocols import RunFailed
from capo_ray.runs.layout import CRITIQUES_FILE

CANARY_TOKENS = 48
"""Longer than a prefix-cache block (32 tokens on the CPU), so that a stale block shows; not much longer: both sides
score it at every publish, which on a CPU costs more than moving the weights."""
MANY_AT_ONCE = {"max_concurrency": 1000}
"""For actors that wait more than they work."""
SWAP_S = 600.0
"""For an engine to take in new weights where `weights.deadline_s` is left to their size, which the driver counts."""


def policy_path(config: TrainConfig) -> str:
    """The policy's model directory or hub name."""
    return str(asset_path(config.model.path, "policy"))


def critic_path(config: TrainConfig) -> str:
    """The critic's model directory or hub name."""
    return str(asset_path(config.critic.model, "critic"))


def reward_model_path(config: TrainConfig) -> str:
    """The reward model's model directory or hub name."""
    return str(asset_path(config.reward_model.path or config.model.path, "policy"))


def require_policys_tokens(config: TrainConfig, tokenizer: HfTokenizer) -> None:
    """Raises RunFailed where the reward model would read the policy's token ids as other tokens."""
    if not config.credit.asked(TokenRewards) or not config.reward_model.path:
        return
    theirs = HfTokenizer(reward_model_path(config)).hf.get_vocab()
    for token, index in sorted(tokenizer.hf.get_vocab().items(), key=lambda pair: pair[1]):
        if theirs.get(token) != index:
            raise RunFailed(
                f"reward_model.path must hold a model with the policy's tokenizer: {token!r} is {index} there and "
                f"{theirs.get(token, 'no token')} in {config.reward_model.path}; train one from model.path's tokenizer"
            )


def policy_engine(config: TrainConfig) -> EngineSpec:
    """The engine of a rollout worker."""
    return EngineSpec(
        model_path=policy_path(config),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        seed=config.run.seed,
        weight_transport=config.weights.transport,
        running=config.weights.running,
        deadline_s=config.rollout.deadline_s,
        start_deadline_s=config.engine.start_deadline_s,
        swap_deadline_s=config.weights.deadline_s or SWAP_S,
        **_engine_share(config.engine),
    )


def critic_engine(config: TrainConfig) -> EngineSpec | None:
    """The engine of a critic worker; only `critic.backend=vllm` has one."""
    if config.critic.backend != "vllm":
        return None
    return EngineSpec(
        model_path=critic_path(config),
        dtype=config.critic.dtype,
        max_model_len=config.critic.max_model_len,
        seed=config.run.seed,
        weight_transport="none",
        deadline_s=config.critic.deadline_s,
        start_deadline_s=config.engine.start_deadline_s,
        **_engine_share(config.critic),
    )


def build_rollout_pool(config: TrainConfig, places: Places) -> RolloutPool:
    """Rollout workers, not started."""
    spec = policy_engine(config)
    return RolloutPool(config, lambda index: spawn(RolloutWorker, places.of("rollout", index) | MANY_AT_ONCE, spec))


def build_critic_pool(config: TrainConfig, run_dir: Path, places: Places) -> CriticPool:
    """Critic workers, not started."""
    asked = config.credit.asked(Critiques)
    assert asked is not None, "only a method that reads critiques has critics"
    arguments = (critic_engine(config), config.critic, asked.vote, asked.quorum)
    store = build_store(config, run_dir)

    def make(index: int) -> ActorHandle[CriticWorker]:
        keeper = store.keeper if store is not None else None
        return spawn(CriticWorker, places.of("critic", index) | MANY_AT_ONCE, *arguments, keeper)

    return CriticPool(config, make, store)


def build_store(config: TrainConfig, run_dir: Path) -> StoreTier | None:
    """The critique store, not opened; None for a critic that costs nothing to ask again."""
    if config.critic.backend == "calculator":
        return None
    path = Path(config.critic.store).expanduser() if config.critic.store else run_dir / CRITIQUES_FILE
    return StoreTier(path, asked_for=bool(config.critic.store))


def build_verifier_tier(config: TrainConfig) -> VerifierTier:
    """Verifier workers, not started."""
    options = {"num_cpus": 0} | MANY_AT_ONCE
    return VerifierTier(config, lambda _: spawn(VerifierWorker, options, config.verifier))


def build_learner(config: TrainConfig, places: Places) -> LearnerActors:
    """Learner ranks, not started."""

    def build_spec(rank: int, meeting: str) -> LearnerSpec:
        return LearnerSpec(
            model_path=policy_path(config),
            dtype=config.model.dtype,
            learner=config.learner,
            loss=config.loss,
            temperature=config.rollout.temperature,
            total_updates=config.run.num_updates,
            rank=rank,
            world_size=config.learner.num_ranks,
            init_method=meeting if config.learner.num_ranks > 1 else "",
            seed=config.run.seed,
        )

    return LearnerActors(
        config, lambda rank: spawn(LearnerRank, _rank_options(places.of("learner", rank), config), rank), build_spec
    )


def build_reward_model(config: TrainConfig, places: Places) -> RewardModelActors:
    """The ranks of the model that rewards tokens, not started."""
    num_ranks = config.reward_model.num_ranks

    def build_spec(rank: int, meeting: str) -> RewardSpec:
        asked = config.credit.asked(TokenRewards)
        assert asked is not None, "only a method that reads token rewards has a reward model"
        return RewardSpec(
            method=asked.objective,
            model_path=reward_model_path(config),
            reference_path=policy_path(config),
            dtype=config.model.dtype,
            reward_model=config.reward_model,
            learner=config.learner,
            temperature=config.rollout.temperature,
            kl_coef=config.loss.kl_coef,
            trace_decay=asked.trace_decay,
            rank=rank,
            world_size=num_ranks,
            init_method=meeting if num_ranks > 1 else "",
            seed=config.run.seed,
            device="auto" if config.reward_model.num_gpus > 0 else "cpu",
        )

    return RewardModelActors(
        config,
        lambda rank: spawn(RewardModelRank, _rank_options(places.of("reward_model", rank), config), rank),
        build_spec,
    )


def canary_ids(tokenizer: HfTokenizer, prompts: list[str], max_tokens: int) -> tuple[int, ...]:
    """Fixed token ids that engine and learner both score after a publish."""
    ids: list[int] = []
    while len(ids) < CANARY_TOKENS and prompts:
        for prompt in prompts:
            ids += tokenizer.encode_data(prompt)
    return tuple(ids[: min(CANARY_TOKENS, max_tokens - 1)])


def _engine_share(part: EngineConfig | CriticConfig) -> dict[str, Any]:
    names = (
        "tensor_parallel",
        "max_num_seqs",
        "max_batched_tokens",
        "kv_cache_gib",
        "gpu_memory_frac",
        "extra",
        "step_deadline_s",
    )
    return {"device": "gpu" if part.num_gpus > 0 else "cpu"} | {name: getattr(part, name) for name in names}


def _rank_options(place: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Of a rank's actor: one thread that serves in turn, one beside it that writes checkpoints, one for pings."""
    hidden = place.get("runtime_env", {}).get("env_vars", {})
    threads = {"OMP_NUM_THREADS": str(config.learner.num_threads)}
    lanes = {"concurrency_groups": {PINGS: 1, WRITING: 1}}
    return place | lanes | {"runtime_env": {"env_vars": hidden | threads}}
