"""A vLLM engine and its workers, whatever model it holds."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from capo_ray.config.base import Idle, Scalar, Section
from capo_ray.config.job import Positive


class EngineBase(Section):
    """What the sections of all engines share."""

    section: ClassVar[str]
    """Where it stands, for its sentences."""

    num_workers: Positive = 1
    num_cpus: float = Field(0.5, ge=0)
    """Ray CPUs of each worker."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs of each worker; 0: it computes on CPU cores."""
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
    extra: dict[str, Scalar] = Field(default_factory=dict)
    """Further engine arguments of vLLM, by vLLM's names, as `engine.extra.enable_expert_parallel=true`."""
    step_deadline_s: float = Field(120.0, gt=0)
    """A step that has not ended after this long means that the worker hangs, and it is replaced. Until its first
    request has ended `engine.start_deadline_s` counts, if longer: first steps compile."""

    def idle(self) -> tuple[Idle, ...]:
        """The cache's size as the other device counts it."""
        name = self.section
        on_cpu = f"with {name}.num_gpus=0; set {name}.kv_cache_gib, or give the {name} a GPU"
        on_gpu = f"with {name}.num_gpus>0; set {name}.gpu_memory_frac"
        return (
            Idle(("gpu_memory_frac",), self.num_gpus == 0, on_cpu),
            Idle(("kv_cache_gib",), self.num_gpus > 0, on_gpu),
        )


class EngineConfig(EngineBase):
    """The vLLM engines of the rollout workers."""

    section: ClassVar[str] = "engine"

    seeded: bool = True
    """Draw each response under a seed of its own, made from run.seed: with stream.max_age=0 on a quiet machine a run
    then repeats its losses to the last digit. On GPUs vLLM draws seeded rows one by one, so `engine=gpu` says false;
    evaluations are seeded either way."""
    start_deadline_s: float = Field(180.0, gt=0)
