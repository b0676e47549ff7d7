"""`SftConfig`: the knobs of `capo-ray sft`, supervised fine-tuning before reinforcement."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from capo_ray.config.base import Idle, LocalPath, Section
from capo_ray.config.job import (
    MAX_TOLD,
    NO_STAGES,
    ON_CPUS,
    FrameConfig,
    JobRunConfig,
    Positive,
    RanksConfig,
    RowsConfig,
    idle_without_gpus,
    idle_without_resume,
)
from capo_ray.config.sections import ClusterConfig, LearnerConfig, TrackingConfig

OF_FRAMED = "with data.kind=chains, whose prompts have a form of their own; set data.kind"
FRAME = tuple(FrameConfig.model_fields)
OF_FILES = "with data that are made on the spot, and read from no file; set data.kind"
OF_CRITICS = "where no critic is taught; it is read with data.kind=chains data.role=critic"
OF_CHAINS = "with other data than chains; it is read with data.kind=chains"
OF_MADE = "with data of files; it is read with data.kind=chains and words"
WITHOUT_RAY = "with learner.backend=torch, which trains in this process without Ray; add learner.backend=zero"


class SftRunConfig(JobRunConfig):
    """The run, as in `capo-ray train`."""

    num_updates: Positive = 400
    """Batches to train, one move each."""
    checkpoint_every: Positive = 100
    """Updates between checkpoints; the last update has one too."""


class SftModelConfig(FrameConfig):
    """Where training starts: a model directory, or random weights of the Qwen3 architecture."""

    path: str = ""
    """A Hugging Face model directory or hub name; `laptop`: the small policy shipped with the package; empty: from
    scratch, with the sizes below."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights in computing and in the files; fp32 masters are trained either way."""
    hidden_size: Positive = 96
    num_layers: Positive = 3
    num_heads: Positive = 3
    head_dim: int = Field(32, ge=32)
    """vLLM's CPU build refuses heads smaller than 32."""
    intermediate_size: Positive = 256
    rope_theta: float = Field(10000.0, gt=0)
    max_positions: Positive = 512
    init_std: float = Field(0.06, gt=0)
    """Standard deviation of the first weights. The usual 0.02 wastes a hundred updates at these sizes."""

    def idle(self) -> tuple[Idle, ...]:
        """The sizes beside a model that has its own."""
        sizes = tuple(name for name in type(self).model_fields if name not in ("path", "dtype", *FRAME))
        return (
            Idle(sizes, bool(self.path), "with model.path, whose model has its sizes; remove one of the two"),
            *super().idle(),
        )


class SftDataConfig(RowsConfig):
    """What is taught."""

    solution_column: str = ""
    """As `question_column`: what the model shall answer; of a chat its one assistant turn. Empty: found too."""
    role: Literal["policy", "critic"] = "policy"
    """kind=chains: whose lessons; from scratch it also chooses the tokenizer."""
    min_steps: Positive = 2
    """kind=chains, words: fewest operations per problem."""
    max_steps: Positive = 8
    """kind=chains, words: most operations per problem."""
    error_prob: float = Field(0.35, ge=0, le=1)
    """kind=chains, role=policy: how often a demonstrated result is replaced by a random digit."""
    label_error_prob: float = Field(0.0, ge=0, le=1)
    """kind=chains, role=critic: how often the critique takes a random digit for the right result of a step; votes drawn
    at temperature 1 then err, and not all at once."""
    carried: bool = True
    """kind=chains, role=critic: judge whole chains; false: bare facts, each step with an operand of its own."""
    unlearnt_frac: float = Field(0.0, ge=0, le=1)
    """kind=words, and chains with role=policy: share of the sums whose demonstrated results are random, so never
    taught."""

    def idle(self) -> tuple[Idle, ...]:
        """What the other kind of lessons reads."""
        of_files = ("path", "split", "question_column", "solution_column", "max_bad_rows")
        return (
            Idle(of_files, self.makes_problems, OF_FILES),
            Idle(("min_steps", "max_steps"), not self.makes_problems, OF_MADE),
            Idle(("role",), self.kind != "chains", OF_CHAINS),
            Idle(
                ("error_prob",),
                self.kind != "chains" or self.role == "critic",
                "where no chains of a policy are taught; it is read with data.kind=chains data.role=policy",
            ),
            Idle(
                ("unlearnt_frac",),
                not self.knows_steps or (self.kind == "chains" and self.role == "critic"),
                "where no made problems are solved; it is read with data.kind=words, or chains and data.role=policy",
            ),
            Idle(("carried", "label_error_prob"), self.kind != "chains" or self.role == "policy", OF_CRITICS),
            *super().idle(),
        )


class SftLearnerConfig(RanksConfig):
    """The learner: the same, with the same learning rate, as in `capo-ray train`."""

    backend: Literal["zero", "fsdp", "torch"] = "torch"
    """torch: one rank in the command's own process, without Ray; zero, fsdp: ranks on a Ray cluster, of DeepSpeed's
    ZeRO or torch's FSDP2."""
    lr: float = Field(1e-3, gt=0)
    warmup_updates: int = Field(20, ge=0)
    min_lr_frac: float = Field(0.05, ge=0, le=1)
    microbatch_tokens: Positive = 16384
    """Tokens computed per forward pass and rank."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs of each rank; 0: it trains on CPU cores."""
    deadline_s: float = Field(600.0, gt=0)
    """For one update."""

    def to_learner(self) -> LearnerConfig:
        """What the learner is made from: one move for each batch."""
        return LearnerConfig(num_epochs=1, **self.model_dump())

    def idle(self) -> tuple[Idle, ...]:
        """What only ranks on Ray read."""
        on_ray = ("zero_stage", "num_cpus", "node_resource", "deadline_s")
        return (
            *super().idle(),
            Idle(on_ray, self.backend == "torch", WITHOUT_RAY),
            Idle(("zero_stage",), self.backend == "fsdp", NO_STAGES),
            Idle(("offload_states",), not self.num_gpus, ON_CPUS.format("they are")),
        )


class SftConfig(Section):
    """Everything that `capo-ray sft` needs; a resolved copy stands in the run directory and in recipe.json."""

    run: SftRunConfig = SftRunConfig()
    model: SftModelConfig = SftModelConfig()
    data: SftDataConfig = SftDataConfig()
    learner: SftLearnerConfig = SftLearnerConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()
    out: LocalPath = ""
    """Directory for the model, which must not exist yet, or be empty; empty: `model` in the run directory."""
    batch_size: Positive = 96
    """Examples per update."""
    max_tokens: Positive = 512
    """Longest prompt + completion; longer examples are left out and counted."""
    prompt_loss_weight: float = Field(0.0, ge=0, le=1)
    """Weight of a prompt token in the loss beside 1 for a completion token; 0: completions only."""
    eval_problems: int = Field(256, ge=0)
    """kind=chains: held-out problems of the closing evaluation; 0: none."""
    eval_steps: Positive = 6
    """kind=chains: operations per problem of the closing evaluation."""
    eval_policy: str = "laptop"
    """kind=chains, role=critic: the policy whose samples the critic is measured on."""
    resume: str = ""
    """Run directory to go on with."""

    @property
    def in_process(self) -> bool:
        """Whether it trains in the command's own process, without Ray."""
        return self.learner.backend == "torch"

    @model_validator(mode="after")
    def _refuse_combinations(self) -> SftConfig:
        if self.data.kind != "chains" and not self.model.path:
            raise ValueError(
                f"data.kind={self.data.kind} needs model.path, since a tokenizer cannot be made from scratch (got none)"
            )
        if self.data.min_steps > self.data.max_steps:
            raise ValueError(
                f"data.min_steps must be <= data.max_steps (got {self.data.min_steps} > {self.data.max_steps})"
            )
        if self.data.kind == "words" and self.data.max_steps > MAX_TOLD:
            raise ValueError(f"data.max_steps must be <= {MAX_TOLD} with data.kind=words (got {self.data.max_steps})")
        learner = self.learner
        if learner.backend == "torch" and learner.num_ranks > 1:
            raise ValueError(
                f"learner.backend=torch trains on one rank, so learner.num_ranks must be 1 (got {learner.num_ranks}); "
                f"add learner.backend=zero to train on more"
            )
        return self

    def idle(self) -> tuple[Idle, ...]:
        """Between sections, and parts of an evaluation that is not made."""
        return (
            idle_without_resume(self.resume),
            idle_without_gpus(self.learner.num_gpus > 0),
            Idle(("cluster",), self.in_process, WITHOUT_RAY),
            Idle(tuple(f"model.{name}" for name in FRAME), self.data.kind == "chains", OF_FRAMED),
            Idle(("eval_problems", "eval_steps", "eval_policy"), self.data.kind != "chains", OF_CHAINS),
            Idle(("eval_policy",), self.data.role == "policy", OF_CRITICS),
            Idle(
                ("eval_steps", "eval_policy"),
                self.eval_problems == 0,
                "with eval_problems=0, which leaves the closing evaluation out",
            ),
        )
