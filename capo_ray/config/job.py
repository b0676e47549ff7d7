"""What every command that trains has in common: its sections as far as both kinds of run read them.

`train` and `sft` say the rest in sections of their own, which inherit these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from capo_ray.config.base import Idle, LocalPath, Scalar, Section, local_path
from capo_ray.config.lora import LoraConfig

Positive = Annotated[int, Field(ge=1)]
NO_STAGES = "unless learner.backend=zero; remove one of the two"
ON_CPUS = "on CPUs, where {} in host memory already; remove it or give the learner a GPU"


class JobRunConfig(Section):
    """The run as a whole: its directory, its length and its checkpoints."""

    dir: LocalPath = "runs"
    """Directory in which run directories are made."""
    name: str = ""
    """Name of the run directory in `dir`; empty: made from time and credit method."""
    seed: int = 0
    num_updates: Positive = 40
    """Batches to train."""
    max_minutes: float = Field(0.0, ge=0)
    """Stop cleanly after this many minutes; 0: no limit."""
    checkpoint_every: Positive = 10
    """Updates between checkpoints."""
    keep_checkpoints: Positive = 2
    checkpoint_deadline_s: float = Field(1800.0, gt=0)
    """For writing one checkpoint, which goes on beside training, and for reading what a resume goes on from."""
    stop_grace_s: float = Field(60.0, ge=0)
    """After SIGTERM, the first Ctrl-C or a failure: for ending the update under way and saving a checkpoint.

    Who ends the process by force must wait for longer (docs/runs.md, "Who sends SIGTERM").
    """
    from_zero: bool = False
    """With resume=RUN where no checkpoint of RUN is whole: start again at update 0, the damaged ones set aside."""
    changes_allowed: tuple[str, ...] = ()
    """With resume=RUN: keys that may differ although they change what the run means, as `[model.path]`."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name in ("latest", ".", "..") or "/" in name:
            raise ValueError(f"run.name must be a name in run.dir, other than latest, . and .. (got {name!r})")
        return name


class FrameConfig(Section):
    """How a question becomes a prompt."""

    system_prompt: str = ""
    """Put before the question: as the system message of a chat template, or as plain text."""
    prompt_template: str = "{question}\n"
    """Used where the tokenizer has no chat template, or `chat_template=false`."""
    chat_template: bool = False
    """Ask as a user turn of the tokenizer's chat template, which then also says what begins a prompt."""
    chat_template_args: dict[str, Scalar] = Field(default_factory=dict)
    """Names that the chat template reads, as `model.chat_template_args.enable_thinking=false`."""

    def idle(self) -> tuple[Idle, ...]:
        """What only a chat template reads."""
        why = "with model.chat_template=false; remove it, or set that to true"
        return (Idle(("chat_template_args",), not self.chat_template, why),)


MAX_TOLD = 6
"""Most operations of a word problem: of more, stories of numbers up to a hundred grow rare."""


class RowsConfig(Section):
    """Files or a data set, and where the question stands in their rows."""

    kind: Literal["chains", "words", "files", "jsonl", "csv", "parquet", "hub"] = "chains"
    """chains: one-digit sums, words: word problems in English, both made on the spot; `files`: each file is what its
    first bytes say (JSON lines or arrays, CSV, Parquet, Arrow; gzip, zstd, bzip2); jsonl, csv, parquet: anything else
    is refused; hub: a data set by name, which needs the package `datasets`."""
    path: str = ""
    """File, folder (also one of `save_to_disk`) or pattern such as `data/train-*.parquet`; with hub a data set's name,
    or `NAME:CONFIG` of one that has several."""
    split: str = "train"
    """Of a data set or of a folder whose names of files tell splits."""
    question_column: str = ""
    """A column, or a path into one, as `extra.question`; of a chat its one user turn is the question. Empty: the first
    of the usual ones that the rows have, which is said at the start."""
    max_value: int = Field(100, ge=10, le=100)
    """kind=words: the largest number of a story, asked or computed."""
    max_bad_rows: int = Field(10, ge=0)
    """Unreadable rows above which the run ends; each is reported with file and line."""

    @field_validator("path", "eval_path", check_fields=False)
    @classmethod
    def _names_no_address(cls, path: str, info: ValidationInfo) -> str:
        """A data set's name is for the package that fetches it to judge."""
        return path if info.data.get("kind") == "hub" else local_path(path)

    def idle(self) -> tuple[Idle, ...]:
        """The choice of a split where there is none, and what only word problems have."""
        why = "where data.path names files, which are all read; remove it, or name a folder of several splits"
        return (
            Idle(("split",), self._names_files(self.path), why),
            Idle(("max_value",), self.kind != "words", "unless data.kind=words; remove it or choose data=words"),
        )

    @property
    def knows_steps(self) -> bool:
        """Whether the truth of every step is known: of chains and of word problems."""
        return self.kind in ("chains", "words")

    @property
    def makes_problems(self) -> bool:
        """Whether problems are made on the spot, and no file is read."""
        return self.kind in ("chains", "words", "environment")

    def _names_files(self, path: str) -> bool:
        """Whether a path stands for files, not for a data set or folder of which a split is to be chosen."""
        return self.kind != "hub" and not Path(path).expanduser().is_dir()


class RanksConfig(Section):
    """The learner group, whatever it learns from."""

    num_ranks: Positive = 1
    backend: Literal["zero", "fsdp", "torch"] = "zero"
    """What trains: DeepSpeed's ZeRO; torch's FSDP2, whose ranks hold equal parts of everything; or plain torch, on one
    rank. `deepspeed` is the old name of zero."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    lora: LoraConfig = LoraConfig()
    lr: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_updates: int = Field(0, ge=0)
    min_lr_frac: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    microbatch_tokens: Positive = 2048
    """Tokens that a rank computes in a microbatch; a response that is longer with its prompt stands alone."""
    packing: Literal["shared", "padded"] = "shared"
    """`shared`: no padding, and a prompt is computed once for all its responses in a microbatch; padded: a row a
    response, for models whose layers are not plain causal attention."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    sequence_parallel: Positive = 1
    """Ranks that compute a microbatch together, each a stretch of its tokens: contexts that one rank has no room for.
    `num_ranks` is a multiple of it, and so are the model's attention heads."""
    offload_states: bool = False
    """Keep masters in fp32, Adam's moments and sums of gradients in host memory, where Adam then moves them; for
    backend=fsdp, whose weights are the masters and go along, and zero_stage=3. Give it `num_threads` and `num_cpus`."""
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    node_resource: str = ""
    """A custom Ray resource that the nodes for these workers announce: they go nowhere else; empty: any node."""
    num_threads: Positive = 1
    deadline_s: float = Field(600.0, gt=0)
    """For one update or publish."""

    @field_validator("backend", mode="before")
    @classmethod
    def _by_its_old_name(cls, backend: object) -> object:
        return "zero" if backend == "deepspeed" else backend

    @model_validator(mode="after")
    def _shares_rows(self) -> Self:
        size = self.sequence_parallel
        if size > 1 and (self.num_ranks % size or self.packing != "shared" or self.backend == "torch"):
            raise ValueError(
                f"learner.sequence_parallel={size} needs learner.num_ranks a multiple of it, learner.packing=shared "
                f"and learner.backend=zero or fsdp (got {self.num_ranks}, {self.packing} and {self.backend})"
            )
        return self

    @model_validator(mode="after")
    def _offloads_parts(self) -> Self:
        if self.offload_states and not self.holds_parts:
            had = f"{self.backend}" + (f" and learner.zero_stage={self.zero_stage}" if self.backend == "zero" else "")
            raise ValueError(
                f"learner.offload_states=true needs learner.backend=fsdp or learner.zero_stage=3, whose ranks hold "
                f"equal parts of everything (got learner.backend={had})"
            )
        return self

    @property
    def holds_parts(self) -> bool:
        """Whether a rank's share of the weights is all that it holds of them between passes."""
        return self.backend == "fsdp" or (self.backend == "zero" and self.zero_stage == 3)

    @property
    def num_columns(self) -> int:
        """Different microbatches at a time: one a rank, or one for those that compute it together."""
        return self.num_ranks // self.sequence_parallel

    @property
    def cell_tokens(self) -> int:
        """Most tokens of a microbatch of several responses, whoever computes it."""
        return self.microbatch_tokens * self.sequence_parallel

    def idle(self) -> tuple[Idle, ...]:
        """What a constant learning rate leaves unread."""
        why = "with learner.schedule=constant; remove it or choose learner.schedule=cosine"
        return (Idle(("min_lr_frac",), self.schedule == "constant", why),)


def idle_without_resume(resume: str) -> Idle:
    """The rule on keys of `run` that only a resumption reads."""
    why = "without resume=RUN: a new run begins at update 0 with the settings given; remove it"
    return Idle(("run.from_zero", "run.changes_allowed"), not resume, why)


def idle_without_gpus(asked: bool) -> Idle:
    """The rule on keys of `cluster` that matter where any actor has asked for a GPU."""
    keys = ("cluster.num_nodes", "cluster.gpus_per_node", "cluster.gpu_memory_gib")
    return Idle(keys, not asked, "where no actor asks for a GPU; remove it, or choose engine=gpu learner=gpu")
