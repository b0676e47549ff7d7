"""The memory of one rank of a group that trains: on its device, and what of it is kept on its host."""

from __future__ import annotations

from dataclasses import dataclass

from capo_ray.config import Job, TrainConfig
from capo_ray.config.job import RanksConfig
from capo_ray.demand import Demand, policy_model
from capo_ray.sizing import AdapterLoad, LearnerLoad, Shape, Term, learner_terms, offloaded_terms, total

GIB = 1 << 30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
LEARNER_BASE_GIB = 0.5  # torch, transformers and DeepSpeed; measured on a default run


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one actor of a role, or of one of its GPUs; `known`: its model's size is."""

    role: str
    count: int
    on_gpu: bool
    terms: tuple[Term, ...]
    known: bool = True
    num_params: int = 0

    @property
    def gib_each(self) -> float:
        """The sum of the terms."""
        return total(self.terms) / GIB


@dataclass(frozen=True, slots=True)
class Model:
    """A model's size; 0 parameters and no shape where nothing of it is here."""

    num_params: int
    shape: Shape | None


def rank_memory(config: Job, one: Demand, model: Model) -> Memory:
    """The memory of one rank on the CPU, or of its GPU."""
    load, on_gpu = _load(config, one, model), one.num_gpus > 0
    if load is None:
        weights = Term("weights", DTYPE_BYTES[config.model.dtype] * model.num_params, "of a model of unknown shape")
        return Memory(one.label, one.count, on_gpu, (weights,), False)
    terms = learner_terms(load)
    if not on_gpu:
        terms.insert(0, Term("process", LEARNER_BASE_GIB * GIB, f"{LEARNER_BASE_GIB} GiB"))
    return Memory(one.label, one.count, on_gpu, tuple(terms), num_params=model.num_params)


def offloaded_rows(config: Job, one: Demand, model: Model, reference: Model) -> list[Memory]:
    """Host memory of a rank on a GPU whose states or reference are kept there."""
    rows = []
    if config.learner.offload_states:
        load = _load(config, one, model)
        terms = tuple(offloaded_terms(load)) if load is not None else ()
        rows.append(Memory(f"{one.label}'s states", one.count, False, terms, bool(terms), model.num_params))
    if _offloads(config) and one.reads_reference:
        numel, unit = reference.num_params, DTYPE_BYTES[config.model.dtype]
        part = Term("part", unit * numel / one.count, f"{unit} B x N / {one.count}, pinned")
        role = "reference" if one.role == "learner" else "its reference"
        rows.append(Memory(role, one.count, False, (part,), bool(numel), numel))
    return rows


def largest_microbatch(config: Job) -> int:
    """A rank's tokens of the largest microbatch: a sample longer than the budget stands alone."""
    alone = -(-policy_model(config).max_model_len // config.learner.sequence_parallel)
    return max(config.learner.microbatch_tokens, alone)


def _load(config: Job, one: Demand, model: Model) -> LearnerLoad | None:
    """What a rank of this group is asked to hold; None for a model of unknown shape."""
    learner, on_gpu = config.learner, one.num_gpus > 0
    if model.shape is None:
        return None
    return LearnerLoad(
        shape=model.shape,
        num_params=model.num_params,
        unit=DTYPE_BYTES[config.model.dtype],
        zero_stage=_stage(learner, config.model.dtype),
        num_ranks=one.count,
        tokens=largest_microbatch(config),
        checkpointing=learner.gradient_checkpointing,
        reference=one.reads_reference and not (on_gpu and _offloads(config)),
        on_gpu=on_gpu,
        fsdp=learner.backend == "fsdp",
        adapters=AdapterLoad(learner.lora.rank, learner.lora.targets) if _has_adapters(config, one) else None,
        offload=learner.offload_states and on_gpu,
    )


def _has_adapters(config: Job, one: Demand) -> bool:
    """A reward model is trained whole, whatever the policy is."""
    return one.role == "learner" and config.learner.lora.rank > 0


def _offloads(config: Job) -> bool:
    return isinstance(config, TrainConfig) and config.learner.offload_reference


def _stage(learner: RanksConfig, dtype: str) -> int:
    """The ZeRO stage whose terms are those of a rank: plain torch holds what one rank of 0, in bf16 of 1, does."""
    if learner.backend == "zero":
        return learner.zero_stage
    return 0 if dtype == "float32" else 1
