"""What an engine is made from. Frozen and cheap: it travels to the actor that will hold the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from capo_ray.config.engine import EngineBase
from capo_ray.config.lora import LoraConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One vLLM engine. `takes_weights=False` is for one whose weights never change (critics)."""

    model_path: str
    device: Literal["cpu", "gpu"] = "cpu"
    """Follows from the GPUs that the engine is given, not from those that its process happens to see."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_model_len: int = 512
    """Longest prompt + response, in tokens."""
    max_num_seqs: int = 128
    max_batched_tokens: int = 0
    """Most tokens of one step; 0: chosen by `batched_tokens`."""
    kv_cache_gib: float = 0.5
    """KV cache on the CPU; fractions work."""
    gpu_memory_frac: float = 0.85
    """Share of a GPU's memory for weights and KV cache; not read on the CPU."""
    tensor_parallel: int = 1
    seed: int = 0
    takes_weights: bool = True
    adapters: LoraConfig | None = None
    """What versions are adapters of, where they are sent alone."""
    running: Literal["recompute", "keep"] = "recompute"
    """What becomes of the keys and values of running sequences when the weights change."""
    enforce_eager: bool | None = None
    """None: eager on the CPU, where compiling costs more than a short run gains, and compiled on a GPU."""
    num_threads: int = 1
    """OpenMP threads on the CPU, unless OMP_NUM_THREADS is set already."""
    extra: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """Further engine arguments of vLLM; see `engines.extra` for those that are refused."""
    deadline_s: float = 600.0
    """For one request; then it is aborted and `PartTimeout` raised."""
    start_deadline_s: float = 600.0
    step_deadline_s: float = 120.0
    """A step that has not ended after this long is a hang; before the first answer `start_deadline_s`, if longer."""
    swap_deadline_s: float = 600.0
    """For new weights, from the first byte loaded to the canary's answer; then they are refused."""

    @classmethod
    def of(cls, part: EngineBase, **more: Any) -> EngineSpec:
        """The engine of a config section; `more`: what the section does not say."""
        return cls(
            device="gpu" if part.num_gpus > 0 else "cpu",
            max_num_seqs=part.max_num_seqs,
            max_batched_tokens=part.max_batched_tokens,
            kv_cache_gib=part.kv_cache_gib,
            gpu_memory_frac=part.gpu_memory_frac,
            tensor_parallel=part.tensor_parallel,
            extra=part.extra,
            step_deadline_s=part.step_deadline_s,
            **more,
        )

    def __post_init__(self) -> None:
        for name in (
            "max_model_len",
            "max_num_seqs",
            "kv_cache_gib",
            "tensor_parallel",
            "deadline_s",
            "step_deadline_s",
            "start_deadline_s",
            "swap_deadline_s",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"EngineSpec.{name} must be > 0 (got {getattr(self, name)})")
