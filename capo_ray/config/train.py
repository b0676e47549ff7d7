"""`TrainConfig`: the whole of a run, and the combinations that are refused."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from capo_ray.config import sections as s
from capo_ray.config.base import Idle, Section
from capo_ray.config.credit import (
    CapoConfig,
    CreditConfig,
    Critiques,
    Entropies,
    TokenRewards,
    Turns,
    asks_once,
    refuse_other_loss,
)
from capo_ray.config.environment import EnvironmentConfig, NoEnvironment
from capo_ray.config.job import idle_without_gpus, idle_without_resume
from capo_ray.config.loss import LossConfig
from capo_ray.config.reward_model import RewardModelConfig
from capo_ray.config.steps import DEFAULT_STEPS, StepsConfig


class TrainConfig(Section):
    """Everything that `capo-ray train` needs; a resolved copy stands in every run directory."""

    model_config = ConfigDict(defer_build=True)  # the credit methods of other packages are looked for at first use

    run: s.RunConfig = s.RunConfig()
    credit: CreditConfig = Field(default=CapoConfig())
    steps: StepsConfig = Field(default=DEFAULT_STEPS)
    model: s.ModelConfig = s.ModelConfig()
    data: s.DataConfig = s.DataConfig()
    environment: EnvironmentConfig = Field(default=NoEnvironment())
    rollout: s.RolloutConfig = s.RolloutConfig()
    engine: s.EngineConfig = s.EngineConfig()
    critic: s.CriticConfig = s.CriticConfig()
    verifier: s.VerifierConfig = s.VerifierConfig()
    loss: LossConfig = LossConfig()
    learner: s.LearnerConfig = s.LearnerConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    stream: s.StreamConfig = s.StreamConfig()
    weights: s.WeightsConfig = s.WeightsConfig()
    tracking: s.TrackingConfig = s.TrackingConfig()
    cluster: s.ClusterConfig = s.ClusterConfig()
    resume: str = ""
    """Run directory to go on with."""

    @model_validator(mode="after")
    def _refuse_combinations(self) -> TrainConfig:
        if self.rollout.top_p < 1 and self.loss.behaviour == "sampler":
            raise ValueError(
                f"loss.behaviour=sampler needs rollout.top_p=1, since a nucleus changes the sampler's logprobs "
                f"(got rollout.top_p={self.rollout.top_p}); add loss.behaviour=recompute"
            )
        if self.rollout.top_p < 1 and self.credit.reads_sampler_logprobs:
            raise ValueError(
                f"credit={self.credit.method} sets a model against the sampler's logprobs, which a nucleus changes, so "
                f"rollout.top_p must be 1 (got {self.rollout.top_p})"
            )
        learner, ranks = self.learner, max(self.learner.num_ranks, self.reward_model.num_ranks)
        if learner.backend == "torch" and ranks > 1:
            raise ValueError(
                f"learner.backend=torch trains on one rank, so learner.num_ranks and reward_model.num_ranks must be 1 "
                f"(got {ranks}); remove it to train on more with DeepSpeed"
            )
        refuse_other_loss(self.credit, self.loss)
        self._refuse_slots()
        self._refuse_placements()
        if self.steps.thinking == "leave_out" and any(r.continues_prompt for r in self.credit.evidence()):
            raise ValueError(
                f"credit={self.credit.method} goes on from the one prompt of all siblings, so steps.thinking must be "
                "train (got leave_out)"
            )
        self._refuse_turns()
        self._refuse_without_context()
        self._refuse_unknown_steps()
        votes, most = self.credit.asked(Critiques), self.critic.num_votes
        if votes is not None and votes.quorum > most:
            raise ValueError(f"credit.quorum must be <= critic.num_votes (got {votes.quorum} > {most})")
        return self

    @property
    def num_slots(self) -> int:
        """Groups that may be generated, waiting or in training at any time."""
        return self.stream.slots or self.learner.groups_per_batch * (self.stream.max_age + 1)

    @property
    def knows_steps(self) -> bool:
        """Whether the truth of every step is known: of made problems, a calculation a step, with nothing between."""
        return self.data.knows_steps and self.steps.reads == {"text"} and not self.environment.plays

    @property
    def reads_entropies(self) -> bool:
        """Whether the engine is to give the entropy of each token's distribution."""
        return "entropies" in self.steps.reads or self.credit.asked(Entropies) is not None

    def idle(self) -> tuple[Idle, ...]:
        """The rules between sections."""
        votes, rewards = self.credit.asked(Critiques), self.credit.asked(TokenRewards)
        objective = rewards.objective if rewards is not None else ""
        learners = (self.learner, self.reward_model)
        return (
            idle_without_resume(self.resume),
            idle_without_gpus(any(part.num_gpus for part in (self.engine, self.critic, *learners))),
            *self.credit.idle_beside(self),
            Idle(
                ("critic",),
                votes is None,
                f"with credit={self.credit.method}, which reads no critiques; remove it or choose credit=capo",
            ),
            *self.critic.idle_for(
                averages=votes is not None and votes.stops_by == "average",
                asks_once=votes is not None and asks_once(votes.vote),
            ),
            Idle(
                ("critic.flag_unasked",),
                not self.data.knows_steps,
                "unless data.kind=chains or words, whose steps a rule can compare with the question; remove it",
            ),
            *self.reward_model.idle_for(objective),
            *self.learner.idle_for(
                holds_reference=(self.loss.kl_coef > 0 and (not self.learner.lora.rank or objective == "etpo"))
                or objective in ("prime", "eapo"),
                on_gpu=any(part.num_gpus for part in learners),
            ),
            Idle(
                ("weights.adapters",),
                not self.learner.lora.rank,
                "with learner.lora.rank=0, which trains the model itself; remove it or set learner.lora.rank",
            ),
            Idle(
                ("loss.clip_low", "loss.clip_high"),
                self.loss.behaviour == "recompute" and self.learner.num_epochs == 1,
                "with loss.behaviour=recompute and learner.num_epochs=1, where every ratio is 1; raise "
                "learner.num_epochs",
            ),
        )

    def _refuse_turns(self) -> None:
        """Raise where somebody cannot go on from the middle of an episode, or needs one."""
        environment, credit = self.environment, self.credit
        if environment.plays and any(r.continues_prompt for r in credit.evidence()):
            raise ValueError(
                f"credit={credit.method} goes on from a response without its environment, so environment.kind must be "
                f"none (got {environment.kind})"
            )
        if environment.plays and self.steps.thinking == "leave_out":
            raise ValueError(f"steps.thinking must be train with environment.kind={environment.kind} (got leave_out)")
        if credit.asked(Turns) and not (environment.plays and self.steps.segmenter == "turn"):
            raise ValueError(
                f"credit={credit.method} reads the turns of an environment, so there must be one, and steps.segmenter "
                f"must be turn (got environment.kind={environment.kind} and {self.steps.segmenter}); add steps=turn"
            )
        if self.data.kind == "environment" and not environment.has_problems:
            raise ValueError(
                f"data.kind=environment takes an environment's own problems, and environment.kind={environment.kind} "
                f"has none; choose environment=calculator, or other data"
            )

    def _refuse_unknown_steps(self) -> None:
        """Raise where the oracle, or the rule beside a critic, would take every step for a wrong one."""
        if self.knows_steps or not self.credit.asked(Critiques):
            return
        cut = (
            f"in one turn and cut where the text ends them (got data.kind={self.data.kind}, environment.kind="
            f"{self.environment.kind} and steps.segmenter={self.steps.segmenter})"
        )
        if self.critic.backend == "oracle":
            raise ValueError(
                f"critic.backend=oracle knows the steps of data=chains and data=words alone, {cut}; choose these, or "
                "another critic"
            )
        if self.critic.flag_unasked and self.data.knows_steps:
            raise ValueError(
                f"critic.flag_unasked=true sees which steps were asked for {cut}; choose these, or add "
                "critic.flag_unasked=false"
            )

    def _refuse_without_context(self) -> None:
        """Raise where there is no context to quote from, or no step that quotes."""
        there = self.data.has_context and self.steps.segmenter == "evidence" and not self.environment.plays
        if self.credit.reads_context and not there:
            raise ValueError(
                f"credit={self.credit.method} reads what is quoted of a context, so there must be data.kind=haystack "
                f"or data.context_column, steps.segmenter=evidence and no environment (got data.kind={self.data.kind}, "
                f"{self.steps.segmenter} and environment.kind={self.environment.kind})"
            )

    def _refuse_slots(self) -> None:
        """Raise where a batch never fills, or finished groups grow too old in line."""
        batch, most = self.learner.groups_per_batch, self.learner.groups_per_batch * (self.stream.max_age + 1)
        if not batch <= self.num_slots <= most:
            raise ValueError(
                f"stream.slots must be 0, or from learner.groups_per_batch={batch} to {batch} x (stream.max_age + 1) = "
                f"{most} (got {self.stream.slots}): fewer never fill a batch, and of more some would be too old "
                f"before their turn; raise stream.max_age for more"
            )

    def _refuse_placements(self) -> None:
        """Raise where critics cannot stand where `critic.placement` puts them."""
        engine, critic = self.engine, self.critic
        if critic.placement == "anywhere":
            return
        if critic.node_resource:
            raise ValueError(
                f"critic.placement={critic.placement} puts critics beside rollout workers, so critic.node_resource "
                f"must be empty (got {critic.node_resource!r}); engine.node_resource names the nodes of both"
            )
        neighbours = -(-critic.num_workers // engine.num_workers)
        gpus = engine.num_gpus + neighbours * critic.num_gpus
        if critic.placement == "colocated" and gpus > 1:
            raise ValueError(
                f"critic.placement=colocated shares one GPU, so engine.num_gpus + {neighbours} x critic.num_gpus must "
                f"be <= 1 (got {gpus:g}); give each a share, as engine.num_gpus=0.5 critic.num_gpus=0.5"
            )
        memory = engine.gpu_memory_frac + neighbours * critic.gpu_memory_frac
        if critic.placement == "colocated" and gpus > 0 and memory > 1:
            raise ValueError(
                f"critic.placement=colocated shares one GPU's memory, so engine.gpu_memory_frac + {neighbours} x "
                f"critic.gpu_memory_frac must be <= 1 (got {memory:g})"
            )
