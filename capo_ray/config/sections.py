"""The sections of a run's configuration, in the order in which a group meets them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from capo_ray.config.base import Scalar, Section
from capo_ray.config.critic import CriticConfig as CriticConfig
from capo_ray.config.curriculum import CurriculumConfig
from capo_ray.config.job import FrameConfig, JobRunConfig, RanksConfig, RowsConfig
from capo_ray.config.job import Positive as Positive


class RunConfig(JobRunConfig):
    """The run as a whole."""

    eval_every: int = Field(10, ge=0)
    """Updates between evaluations; 0: only first and last."""
    eval_problems: Positive = 128
    """Held-out problems per evaluation."""
    eval_temperature: float = Field(1.0, ge=0)
    """Of the sampled responses, beside which each evaluation draws a greedy one; 0: only that one."""
    eval_samples: Positive = 1
    """Sampled responses to each held-out problem."""
    transcripts_every: Positive = 5
    """Updates between transcripts; the first and the last update of a run have one as well."""
    transcript_groups: int = Field(1, ge=0)
    """Groups of an update that its transcript holds; 0: all of them."""
    max_creditless_groups: Positive = 200
    """Groups in a row without credit after which the run ends with a sentence."""
    max_failures: Positive = 20
    """Failed groups in a row after which the run ends with the cause."""
    max_nonfinite_groups: Positive = 8
    """Groups in a row with a response that was quarantined (`quarantine.jsonl`: a logprob, entropy or advantage that is
    not finite, or an advantage beyond 1e6) after which the run ends."""
    max_nonfinite_updates: Positive = 3
    """Updates in a row, skipped since loss or gradient was not finite, after which the run ends."""

    @model_validator(mode="after")
    def _samples_differ(self) -> RunConfig:
        if self.eval_temperature == 0 and self.eval_samples > 1:
            raise ValueError(
                f"run.eval_samples must be 1 with run.eval_temperature=0, whose samples are all the same (got "
                f"{self.eval_samples}); raise run.eval_temperature"
            )
        return self


class ModelConfig(FrameConfig):
    """The policy."""

    path: str = "laptop"
    """A Hugging Face model directory or hub name; `laptop`: the small policy shipped with the package."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: Positive = 512
    """Longest prompt + response, in tokens."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end a response beside the tokenizer's eos and those of `generation_config.json`, as
    `['<|im_end|>']`: for base models whose chat template ends turns with a token that is not their eos."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a response once they are in it, as `["\\nQ:"]`; their tokens stay in it."""


class DataConfig(RowsConfig):
    """The problems."""

    eval_path: str = ""
    """Held-out file, folder or pattern; empty: the last `eval_frac` of the rows is held out."""
    eval_frac: float = Field(0.1, ge=0, lt=1)
    eval_split: str = "test"
    answer_column: str = ""
    """As `question_column`: `reward_model.ground_truth`, `answers.0`. A list is a list of answers. Empty: found too."""
    answer_marker: str = ""
    """The answer is what follows the last such mark in the column (`####` in GSM8K); empty: the whole column, or what
    an answer column that was found shows.

    `\\boxed`: the content of the boxes; rows with different ones are bad unless they are one list. What precedes the
    answer (or, with `\\boxed`, the whole column) is the reference solution.
    """
    chain_steps: Positive = 6
    """kind=chains: operations per problem."""
    curriculum: CurriculumConfig = CurriculumConfig()


class RolloutConfig(Section):
    """Sampling from the policy."""

    group_size: int = Field(8, ge=2)
    """Responses per problem (G)."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_response_tokens: Positive = 96
    deadline_s: float = Field(300.0, gt=0)
    """For all siblings of a group."""


class EngineConfig(Section):
    """The vLLM engines of the rollout workers."""

    num_workers: Positive = 1
    num_cpus: float = Field(0.5, ge=0)
    """Ray CPUs of each worker."""
    num_gpus: float = Field(0.0, ge=0)
    node_resource: str = ""
    """A custom Ray resource that the nodes for these workers announce: they go nowhere else; empty: any node."""
    tensor_parallel: Positive = 1
    max_num_seqs: Positive = 128
    max_batched_tokens: int = Field(0, ge=0)
    """Most tokens of one step, prompts and samples together; 0: 8192 to 16384 by model length on GPUs, 4096 or the
    model length on CPUs, where a prompt is computed whole."""
    kv_cache_gib: float = Field(0.5, gt=0)
    """KV cache on the CPU."""
    gpu_memory_frac: float = Field(0.85, gt=0, le=1)
    seeded: bool = True
    """Draw each response under a seed of its own, made from run.seed: with stream.max_age=0 on a quiet machine a run
    then repeats its losses to the last digit. On GPUs vLLM draws seeded rows one by one, so `engine=gpu` says false;
    evaluations are seeded either way."""
    extra: dict[str, Scalar] = Field(default_factory=dict)
    """Further engine arguments of vLLM, by vLLM's names, as `engine.extra.enable_expert_parallel=true`."""
    start_deadline_s: float = Field(180.0, gt=0)
    step_deadline_s: float = Field(120.0, gt=0)
    """A step that has not ended after this long means that the worker hangs, and it is replaced. Until its first
    request has ended `start_deadline_s` counts, if longer: first steps compile."""


class VerifierConfig(Section):
    """The rule that checks final answers."""

    kind: Literal["math", "exact", "choice", "numeric", "custom"] = "math"
    """math: math-verify; exact: same text; choice: same options; numeric: within `tolerance`; custom: the function at
    `path`."""
    path: str = ""
    """kind=custom: `package.module:function`, called as function(answer, response) -> True, False or None (invalid)."""
    tolerance: float = Field(0.01, ge=0, lt=1)
    """kind=numeric: how far an answer may be from the reference, as a share of it; 0: the same value."""
    num_workers: Positive = 1
    num_processes: Positive = 1
    """Child processes per worker."""
    timeout_s: float = Field(1.0, gt=0)
    """Processor seconds for one pair (kind=custom: seconds); then its process is killed and the verdict is invalid."""
    memory_mib: Annotated[int, Field(ge=256)] = 512
    """Address space of one child process."""
    checks_per_process: Positive = 2000
    """Checks after which a child process is replaced."""
    cache_entries: int = Field(8192, ge=0)
    """Verdicts kept for repeated (answer, response) pairs."""
    deadline_s: float = Field(60.0, gt=0)
    """For all siblings of a group."""

    @model_validator(mode="after")
    def _path_goes_with_custom(self) -> VerifierConfig:
        if self.kind == "custom" and not re.fullmatch(r"[\w.]+:\w+", self.path):
            raise ValueError(f"verifier.kind=custom needs verifier.path=package.module:function (got {self.path!r})")
        if self.kind != "custom" and self.path:
            raise ValueError(f"verifier.path is only read with verifier.kind=custom (got verifier.kind={self.kind})")
        if self.kind != "numeric" and self.tolerance != type(self).model_fields["tolerance"].default:
            raise ValueError(
                f"verifier.tolerance is only read with verifier.kind=numeric (got verifier.kind={self.kind})"
            )
        return self


class LearnerConfig(RanksConfig):
    """The learner group."""

    groups_per_batch: Positive = 8
    """Groups in one update."""
    num_epochs: Positive = 4
    """Passes over each batch (the paper's mini-epochs), one optimizer move each."""
    offload_reference: bool = False
    """Keep the model from which KL is measured in host memory and bring a layer at a time to the device."""


class StreamConfig(Section):
    """How far rollouts may run ahead of the learner."""

    max_age: int = Field(1, ge=0)
    """Oldest token that may be trained, in versions behind the learner; older ones are masked. 0 is on-policy."""
    slots: int = Field(0, ge=0)
    """Groups generated, waiting or in training at any time: fewer keep tokens younger, more keep engines busier; 0:
    learner.groups_per_batch x (max_age + 1), which is also the most."""
    replace_creditless: bool = False
    """A group without credit (all advantages 0) makes room for another, as DAPO's dynamic sampling wants it; false: it
    is in its batch like any other."""


class WeightsConfig(Section):
    """How weights reach the rollout engines."""

    canary_every: int = Field(1, ge=0)
    """Publishes between comparisons of engine and learner logprobs; 0: never."""
    canary_tolerance: float = Field(0.0, ge=0)
    """Largest difference allowed, in nats; 0: what `model.dtype` and the difference at version 0, where both sides hold
    the same file, let expect.
    """
    running: Literal["recompute", "keep"] = "recompute"
    """Responses under way when new weights come: recompute their keys and values before they go on (exact), or keep
    the old ones (nothing waits; later tokens attend to keys of older weights)."""
    deadline_s: float = Field(0.0, ge=0)
    """For engines to hold a published version; 0: 120 s and 10 s for each GB of it."""


class TrackingConfig(Section):
    """Where metrics go beside `metrics.jsonl`."""

    tensorboard: bool = True
    wandb: bool = False
    mlflow: bool = False
    project: str = "capo-ray"


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str = ""
    """`auto`, `ray://…` or host:port; empty: RAY_ADDRESS, else a cluster of this run's own."""
    num_cpus: int = Field(0, ge=0)
    """Cores of an own cluster; 0: all."""
    num_nodes: Positive = 1
    """Nodes with GPUs that the run is planned for; read with `gpus_per_node`."""
    gpus_per_node: int = Field(0, ge=0)
    """GPUs of each such node: a run that they cannot hold is refused before it starts; 0: not known."""
    gpu_memory_gib: float = Field(0.0, ge=0)
    """Memory of one GPU (79 of an 80 GB H100): a run that does not fit is refused before it starts. 0: that of the
    smallest GPU here for a cluster of the run's own, else not known."""
    wait_s: float = Field(0.0, ge=0)
    """Wait so long for nodes that join late, and ask an autoscaler for them; 0: what a joined cluster lacks ends the
    run at once."""
    object_store_mib: int = Field(0, ge=0)
    """Shared memory of an own cluster; 0: two versions of the policy and 256 MiB, as far as /dev/shm has room."""
    start_deadline_s: float = Field(120.0, gt=0)
    """For Ray to answer at the start."""
    without_token: bool = False
    """Take RAY_AUTH_MODE=disabled for a cluster with ports open beyond loopback: whoever reaches them runs code."""
    deadline_s: float = Field(30.0, gt=0)
    """The run ends when the cluster's head has not answered for this long."""
