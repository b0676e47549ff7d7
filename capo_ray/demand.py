"""What a run asks of its machines: every role's actors and what each needs, in the one list of them.

    Job -> demand -> (Demand(rollout), Demand(verifier), …)            for the plan and its memory, the checks, the wait
                                                                       for nodes, the places on the cluster

Invariant: a role is in the list exactly where the run will have its actors. No Ray and no torch: a plan needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from capo_ray.config import Job, SftConfig, TrainConfig
from capo_ray.config.credit import Critiques, TokenRewards
from capo_ray.config.engine import EngineBase
from capo_ray.config.evaluation import JudgedServeConfig, ServeConfig
from capo_ray.config.job import RanksConfig
from capo_ray.config.reward_model import RewardModelConfig


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that actors load, and the keys that say so."""

    name: str
    key: str
    shipped: Literal["policy", "critic"]
    """What the name `laptop` stands for."""
    dtype: Literal["float32", "bfloat16"]
    dtype_key: str
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Demand:
    """One role: how many actors it has, and what each of them needs."""

    role: str
    section: str
    """Of the configuration, where these numbers stand."""
    count: int
    num_cpus: float
    num_gpus: float
    node_resource: str
    """A custom Ray resource that its nodes announce; empty: any node."""
    note: str
    """What each actor is, in words."""
    model: ModelUse | None = None
    engine: EngineBase | None = None
    """Of a vLLM engine, which takes a share of its GPUs' memory."""
    is_group: bool = False
    """Whether the actors are the ranks of one process group: placed together, and lost together."""
    reads_reference: bool = False
    """Whether a rank holds a second model, from which KL or log-ratios are measured."""

    @property
    def label(self) -> str:
        """The role as people write it."""
        return self.role.replace("_", " ")


def demand(config: Job) -> tuple[Demand, ...]:
    """The roles of a run in the order in which a group meets them; supervised training has a learner alone."""
    if isinstance(config, SftConfig):
        return (_learner(config),)
    if isinstance(config, ServeConfig):
        critic = _critic(config) if isinstance(config, JudgedServeConfig) else None
        served = [] if config.endpoint.base_url else [_rollout(config)]
        return (*served, _verifier(config), *([critic] if critic is not None else []))
    found = (_rollout(config), _verifier(config), _critic(config), _learner(config), _reward_model(config))
    return tuple(one for one in found if one is not None)


def publishes(config: Job) -> bool:
    """Whether versions of the policy go from a learner to engines."""
    return not isinstance(config, SftConfig | ServeConfig)


def adapters_alone(config: Job) -> bool:
    """Whether engines are sent adapters alone, and merge them into the model's files."""
    return isinstance(config, TrainConfig) and config.learner.lora.rank > 0 and config.weights.adapters == "alone"


def find(config: Job, role: str) -> Demand | None:
    """One role's demand; None where the run does without it."""
    return next((one for one in demand(config) if one.role == role), None)


def in_all(config: Job) -> tuple[float, float]:
    """The CPUs and the GPUs of all actors together."""
    roles = demand(config)
    return sum(one.count * one.num_cpus for one in roles), sum(one.count * one.num_gpus for one in roles)


def models(config: Job) -> tuple[ModelUse, ...]:
    """The models that the run loads, each once."""
    return tuple({one.model.key: one.model for one in demand(config) if one.model is not None}.values())


def bfloat16_on_gpus(config: Job) -> tuple[str, ...]:
    """The keys that ask GPUs to compute in bfloat16, each once."""
    used = (one.model for one in demand(config) if one.model is not None and one.num_gpus)
    return tuple(dict.fromkeys(model.dtype_key for model in used if model.dtype == "bfloat16"))


def neighbourhoods(config: Job) -> tuple[tuple[tuple[Demand, int], ...], ...]:
    """Actors (role, index) that `critic.placement` puts together: each rollout worker and its critics."""
    if isinstance(config, SftConfig):
        return ()
    rollout, critic = _rollout(config), _critic(config)
    if critic is None or config.critic.placement == "anywhere":
        return ()
    return tuple(
        ((rollout, index), *((critic, near) for near in range(index, critic.count, rollout.count)))
        for index in range(rollout.count)
    )


def without_neighbours(config: Job) -> tuple[Demand, ...]:
    """The roles whose actors stand in no neighbourhood."""
    together = {one.role for members in neighbourhoods(config) for one, _ in members}
    return tuple(one for one in demand(config) if one.role not in together)


def policy_model(config: Job) -> ModelUse:
    """The policy, which rollout workers and learner ranks load."""
    model, longest = config.model, config.max_tokens if isinstance(config, SftConfig) else config.model.max_model_len
    return ModelUse(model.path, "model.path", "policy", model.dtype, "model.dtype", longest)


def critic_model(config: TrainConfig) -> ModelUse:
    """The critic of `critic.backend=vllm`."""
    critic = config.critic
    return ModelUse(critic.model, "critic.model", "critic", critic.dtype, "critic.dtype", critic.max_model_len)


def reward_model(config: TrainConfig) -> ModelUse:
    """The model that rewards tokens: the policy's where none is named."""
    policy, path = policy_model(config), config.reward_model.path
    return replace(policy, name=path, key="reward_model.path") if path else policy


def _rollout(config: TrainConfig) -> Demand:
    engine, model = config.engine, policy_model(config)
    share = _share("rollout", "engine", engine.num_workers, engine)
    return Demand(*share, f"vLLM, {model.name}", model, engine)


def _verifier(config: TrainConfig) -> Demand:
    part = config.verifier
    note = f"{part.kind}, {part.num_processes} child process(es)"
    return Demand("verifier", "verifier", part.num_workers, 0.0, 0.0, part.node_resource, note)


def _critic(config: TrainConfig) -> Demand | None:
    critic = config.critic
    if not config.credit.asked(Critiques):
        return None
    share = _share("critic", "critic", critic.num_workers, critic)
    if critic.backend != "vllm":  # whatever GPUs a preset of an engine beside it asks for
        return replace(Demand(*share, critic.backend), num_gpus=0.0)
    return Demand(*share, f"vLLM, {critic.model}", critic_model(config), critic)


def _learner(config: Job) -> Demand:
    learner, has_kl = config.learner, isinstance(config, TrainConfig) and config.loss.kl_coef > 0
    share = _share("learner", "learner", learner.num_ranks, learner)
    # Of a model under adapters the reference is the model itself.
    holds = has_kl and not learner.lora.rank
    return Demand(*share, _backend(config), policy_model(config), is_group=True, reads_reference=holds)


def _reward_model(config: TrainConfig) -> Demand | None:
    part, asked, model = config.reward_model, config.credit.asked(TokenRewards), reward_model(config)
    if asked is None:
        return None
    share = _share("reward_model", "reward_model", part.num_ranks, part)
    note = f"{_backend(config)}, {model.name}"
    reads_reference = asked.objective in ("prime", "eapo") or (asked.objective == "etpo" and config.loss.kl_coef > 0)
    return Demand(*share, note, model, is_group=True, reads_reference=reads_reference)


def _share(
    role: str, section: str, count: int, part: EngineBase | RanksConfig | RewardModelConfig
) -> tuple[str, str, int, float, float, str]:
    return role, section, count, part.num_cpus, part.num_gpus, part.node_resource


def _backend(config: Job) -> str:
    learner = config.learner
    names = {"torch": "plain torch", "fsdp": "FSDP2", "zero": f"DeepSpeed ZeRO-{learner.zero_stage}"}
    return names[learner.backend]
