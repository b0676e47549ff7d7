"""`SftConfig`: the knobs of `capo-ray sft`, supervised fine-tuning before reinforcement."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from capo_ray.config.base import Section
from capo_ray.config.sections import LearnerConfig, Positive


class SftModelConfig(Section):
    """Where training starts: a model directory, or random weights of the Qwen3 architecture."""

    path: str = ""
    """A Hugging Face model directory or hub name; empty: from scratch, with the sizes below."""
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


class SftDataConfig(Section):
    """What is taught."""

    kind: Literal["chains", "jsonl"] = "chains"
    path: str = ""
    """kind=jsonl: file with one object per line, with the two columns below."""
    prompt_column: str = "prompt"
    completion_column: str = "response"
    prompt_template: str = "{question}\n"
    """kind=jsonl: what the model reads, as `model.prompt_template` in training."""
    chat_template: bool = False
    """kind=jsonl: the prompt as a user turn of the tokenizer's chat template."""
    system_prompt: str = ""
    """kind=jsonl: put before the prompt, as in training."""
    role: Literal["policy", "critic"] = "policy"
    """kind=chains: whose lessons; from scratch it also chooses the tokenizer."""
    min_steps: Positive = 2
    """kind=chains: fewest operations per problem."""
    max_steps: Positive = 8
    """kind=chains: most operations per problem."""
    error_prob: float = Field(0.35, ge=0, le=1)
    """kind=chains, role=policy: how often a demonstrated result is replaced by a random digit."""
    max_bad_rows: int = Field(10, ge=0)
    """Unreadable rows above which the command ends."""


class SftLearnerConfig(Section):
    """The learner: the same, with the same learning rate, as in `capo-ray train`."""

    lr: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_updates: int = Field(20, ge=0)
    min_lr_frac: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    microbatch_tokens: Positive = 16384
    """Padded tokens per forward pass."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    num_threads: Positive = 1

    def to_learner(self) -> LearnerConfig:
        """What the learner is made from: one rank of plain torch, one move for each batch."""
        return LearnerConfig(backend="torch", num_epochs=1, **self.model_dump())


class SftConfig(Section):
    """Everything that `capo-ray sft` needs; a resolved copy stands in recipe.json."""

    model: SftModelConfig = SftModelConfig()
    data: SftDataConfig = SftDataConfig()
    learner: SftLearnerConfig = SftLearnerConfig()
    out: str = "sft"
    """Directory for the model; it must not exist yet, or be empty."""
    seed: int = 0
    num_updates: Positive = 400
    batch_size: Positive = 96
    """Examples per update."""
    max_tokens: Positive = 512
    """Longest prompt + completion; longer examples are left out and counted."""
    prompt_loss_weight: float = Field(0.0, ge=0, le=1)
    """Weight of a prompt token in the loss beside 1 for a completion token; 0: completions only."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it trains; auto: on a GPU if there is one."""
    eval_problems: int = Field(256, ge=0)
    """kind=chains: held-out problems of the closing evaluation; 0: none."""
    eval_steps: Positive = 6
    """kind=chains: operations per problem of the closing evaluation."""
    eval_policy: str = "laptop"
    """kind=chains, role=critic: the policy whose samples the critic is measured on."""

    @model_validator(mode="after")
    def _refuse_combinations(self) -> SftConfig:
        if self.data.kind == "jsonl" and not self.data.path:
            raise ValueError("data.kind=jsonl needs data.path, a file of prompt and response lines (got an empty path)")
        if self.data.prompt_template.count("{question}") != 1:
            raise ValueError(
                f"data.prompt_template must hold {{question}} exactly once (got {self.data.prompt_template!r})"
            )
        if self.data.min_steps > self.data.max_steps:
            raise ValueError(
                f"data.min_steps must be <= data.max_steps (got {self.data.min_steps} > {self.data.max_steps})"
            )
        return self
