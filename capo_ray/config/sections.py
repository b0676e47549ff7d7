"""The sections of a run's configuration, in the order in which a group meets them."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from capo_ray.config.base import Idle, Section, local_path
from capo_ray.config.cluster import ClusterConfig as ClusterConfig
from capo_ray.config.critic import CriticConfig as CriticConfig
from capo_ray.config.data import DataConfig as DataConfig
from capo_ray.config.engine import EngineConfig as EngineConfig
from capo_ray.config.families import VERIFIERS, offered_functions
from capo_ray.config.job import NO_STAGES, ON_CPUS, FrameConfig, JobRunConfig, RanksConfig
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


class RolloutConfig(Section):
    """Sampling from the policy."""

    group_size: int = Field(8, ge=2)
    """Responses per problem (G)."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_response_tokens: Positive = 96
    deadline_s: float = Field(300.0, gt=0)
    """For all siblings of a group."""


VERIFIER_KINDS = ("math", "exact", "choice", "numeric", "custom")


def verifier_kinds() -> list[str]:
    """Our own kinds of verifiers, then those of other packages."""
    return list(dict.fromkeys([*VERIFIER_KINDS, *offered_functions(VERIFIERS)]))


class VerifierConfig(Section):
    """The rule that checks final answers."""

    kind: str = "math"
    """math: math-verify; exact: same text; choice: same options; numeric: within `tolerance`; custom: the function at
    `path`; or the name of a function that another package offers by an entry point of `capo_ray.verifiers`."""
    path: str = ""
    """kind=custom: `FILE.py:function` or `package.module:function`, called as function(answer, response) -> True, False
    or None (invalid)."""
    tolerance: float = Field(0.01, ge=0, lt=1)
    """kind=numeric: how far an answer may be from the reference, as a share of it; 0: the same value."""
    num_workers: Positive = 1
    node_resource: str = ""
    """A custom Ray resource that the nodes for these workers announce: they go nowhere else; empty: any node."""
    num_processes: Positive = 1
    """Child processes per worker."""
    timeout_s: float = Field(1.0, gt=0)
    """Processor seconds for one pair (of a function of one's own: seconds, the wait for a free core not counted); then
    its process is killed and the verdict is invalid."""
    memory_mib: Annotated[int, Field(ge=256)] = 512
    """Address space of one child process."""
    checks_per_process: Positive = 2000
    """Checks after which a child process is replaced."""
    cache_entries: int = Field(8192, ge=0)
    """Verdicts kept for repeated (answer, response) pairs."""
    deadline_s: float = Field(60.0, gt=0)
    """For all siblings of a group."""

    @field_validator("path")
    @classmethod
    def _name_its_place(cls, path: str) -> str:
        """A file as all workers find it, wherever they start."""
        file, _, name = path.rpartition(":")
        return f"{Path(local_path(file)).expanduser().absolute()}:{name}" if file.endswith(".py") else path

    @property
    def function(self) -> str:
        """`package.module:function` or `FILE.py:function` where it is not one of our own kinds, else nothing."""
        return self.path if self.kind in VERIFIER_KINDS else offered_functions(VERIFIERS).get(self.kind, "")

    @model_validator(mode="after")
    def _refuse_combinations(self) -> VerifierConfig:
        # Packages beside this one are looked for only where the name is none of ours.
        if self.kind not in VERIFIER_KINDS and self.kind not in (known := verifier_kinds()):
            near = get_close_matches(self.kind, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(f"verifier.kind={self.kind} is no verifier{hint} Verifiers: {', '.join(known)}")
        if self.kind == "custom" and not re.fullmatch(r"([\w.]+|.+\.py):\w+", self.path):
            raise ValueError(
                "verifier.kind=custom needs verifier.path=FILE.py:function or package.module:function "
                f"(got {self.path!r})"
            )
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

    def idle(self) -> tuple[Idle, ...]:
        """What another backend or schedule leaves unread."""
        return (
            *super().idle(),
            Idle(
                ("zero_stage",),
                self.backend != "zero",
                NO_STAGES,
            ),
        )

    def idle_for(self, holds_reference: bool, on_gpu: bool) -> tuple[Idle, ...]:
        """The rules, with keys in full, where a frozen reference is held or not, on a GPU or not."""
        return (
            Idle(
                ("learner.offload_reference",),
                not on_gpu,
                ON_CPUS.format("the reference is"),
            ),
            Idle(("learner.offload_states",), not on_gpu, ON_CPUS.format("they are")),
            Idle(
                ("learner.offload_reference",),
                not holds_reference,
                "where no reference is held: with loss.kl_coef=0, or beside learner.lora.rank, whose reference is the "
                "model without its adapters; remove it",
            ),
        )


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

    transport: Literal["auto", "host", "gloo", "nccl", "ipc"] = "auto"
    """What carries a version: `host`, once through host memory and Ray's object store to each node; `gloo` (CPUs) and
    `nccl` (GPUs), in buckets to all engines at once; `ipc`, within one GPU. `auto`: `host`, until
    `nccl` has been run on GPUs; the dry run tells."""
    bucket_mib: int = Field(64, ge=1, le=2048)
    """Of a version that is sent in buckets: two of them lie in rank 0's memory in place of a copy of the model."""
    delta_frac: float = Field(0.0, ge=0, le=1)
    """Send of a tensor only the values that changed, unless more than this share did; 0: all, always. Rank 0 and every
    engine process then keep a copy of the last version. Pays below 0.3 in bfloat16 and 0.5 in float32."""
    adapters: Literal["alone", "merged"] = "alone"
    """With `learner.lora`: `alone` sends them as they are, and each engine merges them into the model's files, which it
    reads at every version; `merged` sends the whole model."""
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

    def idle(self) -> tuple[Idle, ...]:
        """The tolerance of a comparison that is never made, and buckets that are not sent."""
        never = "with weights.canary_every=0, which never compares; remove one of the two"
        whole = f"with weights.transport={self.transport}, which sends no buckets; name gloo or nccl, or remove it"
        return (
            Idle(("canary_tolerance",), self.canary_every == 0, never),
            Idle(("bucket_mib", "delta_frac"), self.transport in ("auto", "host"), whole),
        )


class TrackingConfig(Section):
    """Where metrics go beside `metrics.jsonl`."""

    tensorboard: bool = True
    wandb: bool = False
    mlflow: bool = False
    trackio: bool = False
    project: str = "capo-ray"

    def idle(self) -> tuple[Idle, ...]:
        """What only the services read."""
        return (
            Idle(
                ("project",),
                not (self.wandb or self.mlflow or self.trackio),
                "without tracking.wandb, tracking.mlflow or tracking.trackio; remove it or choose tracking=wandb",
            ),
        )
