"""What a decode step costs on the host, and how much of it hides behind the device.

    make bench NAME=stepper

vLLM's own Scheduler, EngineCore step and OutputProcessor at 64 and 256 sequences, with the arguments and the sampling
parameters that an engine of this house has; only the model is made up: a step's tokens are ready a stated time after
it was sent to a device that does one step at a time. No engine is started.
    waits       a step is scheduled once the last one's tokens were taken in: it lasts device + host
    ahead       a step is scheduled before that (vLLM's asynchronous scheduling): it lasts max(device, host)
Host milliseconds are CPU time of the one thread, per step, prefill included; step milliseconds are wall. Device times:
0; 7 and 14 ms, those of a 1.5B and a 7B model on an H100 at 256 sequences by arithmetic; and 30. Medians of repeats.
Goal: ahead, a step behind a device of 30 ms lasts at most 1.15 times as long as the device or the host alone, whichever
is more. Writes stepper.json (see records.py).
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import tempfile
import time
from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
from records import record
from tiny import write_tiny_model

from capo_ray.engines import EngineSpec
from capo_ray.engines.requests import TOP_LOGPROBS, sampling_params
from capo_ray.engines.runtime import engine_args, prepare_environment
from capo_ray.protocols import Sampling

RESULTS = record("stepper.json")
TOKENS, BLOCK, BLOCKS = 40, 16, 20_000
DEVICE_MS = (0.0, 7.0, 14.0, 30.0)
GOAL = 1.15


class Device:
    """Stands for the executor of an engine: what it is sent is ready `seconds` after the last, and costs no CPU."""

    def __init__(self, core: Any) -> None:
        self.seconds, self._free_at, self._core = 0.0, 0.0, core
        self._sent: Any = None
        self._rows = 0
        core.model_executor.execute_model = self.execute_model
        core.model_executor.sample_tokens = self.sample_tokens

    def execute_model(self, sent: Any, non_block: bool = False) -> Any:
        """Nothing yet, as an executor answers whose sampling is asked for apart."""
        self._sent = sent
        self._free_at = max(self._free_at, time.perf_counter()) + self.seconds
        future: Future[Any] = Future()
        from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

        future.set_result(None if sent.total_num_scheduled_tokens else EMPTY_MODEL_RUNNER_OUTPUT)
        return future

    def sample_tokens(self, grammar: Any, non_block: bool = False) -> Any:
        """The tokens of the step sent last, once they are ready."""
        answer = _Later(self._made_up(), self._free_at)
        return answer if non_block else answer.result()

    def _made_up(self) -> Any:
        from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

        names = list(self._sent.num_scheduled_tokens)
        width = self._rows + 1
        ids = np.full((len(names), width), 7, dtype=np.int32)
        logprobs = LogprobsLists(ids, np.full((len(names), width), -1.5, dtype=np.float32), ids[:, 0])
        return ModelRunnerOutput(names, {n: i for i, n in enumerate(names)}, [[7] for _ in names], logprobs)


class _Later(Future[Any]):
    """A result that is there from a point in time on."""

    def __init__(self, value: Any, ready_at: float) -> None:
        super().__init__()
        self._value, self._ready_at = value, ready_at

    def result(self, timeout: float | None = None) -> Any:
        if (left := self._ready_at - time.perf_counter()) > 0:
            time.sleep(left)
        return self._value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        write_tiny_model(directory)
        for ahead in (False, True):
            host = Host(directory, ahead)
            host.run(64, 0.0, entropies=False)  # warm
            for sequences in (64, 256):
                for device_ms, entropies in (*((ms, False) for ms in DEVICE_MS), (0.0, True)):
                    pairs = [host.run(sequences, device_ms, entropies=entropies) for _ in range(repeats)]
                    rows.append(
                        {
                            "sequences": sequences,
                            "ahead": ahead,
                            "entropies": entropies,
                            "device_ms": device_ms,
                            "host_ms": round(statistics.median(cpu for cpu, _ in pairs), 2),
                            "step_ms": round(statistics.median(wall for _, wall in pairs), 2),
                        }
                    )
                    print(rows[-1], flush=True)
    result = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "repeats": repeats, "tokens": TOKENS, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    ahead_of = {(r["sequences"], r["device_ms"]): r["step_ms"] for r in rows if r["ahead"] and not r["entropies"]}
    longest = max(ahead_of[n, 30.0] / max(30.0, ahead_of[n, 0.0]) for n in (64, 256))
    print(f"ahead, a step behind 30 ms lasts {longest:.2f} times the longer of device and host (goal {GOAL})")
    return 0 if longest <= GOAL else 1


class Host:
    """vLLM's step without a model: an EngineCore of which only what a step reads is made."""

    def __init__(self, directory: str, ahead: bool) -> None:
        spec = EngineSpec(model_path=directory, max_model_len=512, max_num_seqs=256)
        prepare_environment(spec)
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.engine.output_processor import OutputProcessor
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        config = EngineArgs(**(engine_args(spec) | {"block_size": BLOCK})).create_engine_config()
        config.scheduler_config.async_scheduling = ahead  # vLLM's CPU platform has just forbidden it
        config.cache_config.num_gpu_blocks = BLOCKS
        layer = FullAttentionSpec(block_size=BLOCK, num_kv_heads=2, head_size=32, dtype=torch.float32)
        core: Any = object.__new__(EngineCore)
        core.vllm_config, core.log_stats, core._weight_version = config, False, "0"
        core.structured_output_manager = StructuredOutputManager(config)
        core.scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], layer)]),
            structured_output_manager=core.structured_output_manager,
            include_finished_set=False,
            log_stats=False,
            block_size=BLOCK,
            hash_block_size=BLOCK,
        )
        core.check_for_draft_tokens = core.is_mm_encoder_only = core.is_pooling_model = False
        core.aborts_queue, core.async_scheduling = queue.Queue(), ahead
        core.batch_queue_size = 2
        core.batch_queue = deque(maxlen=2) if ahead else None
        core.model_executor = SimpleNamespace()
        self._step = core.step_with_batch_queue if ahead else core.step
        self._core, self._device, self._num_runs = core, Device(core), 0
        self._outputs = OutputProcessor(None, log_stats=False)
        hashing = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hashing)
        self._hasher = get_request_block_hasher(BLOCK, hashing)

    def run(self, sequences: int, device_ms: float, *, entropies: bool) -> tuple[float, float]:
        """CPU and wall milliseconds per step, from the first to the last token of all sequences."""
        self._device.seconds, self._device._rows = device_ms / 1e3, TOP_LOGPROBS if entropies else 0
        self._num_runs += 1
        for index in range(sequences):
            self._add(f"{self._num_runs}-{index}", Sampling(n=1, max_tokens=TOKENS, entropies=entropies))
        cpu, wall, steps, done = time.thread_time(), time.perf_counter(), 0, 0
        while done < sequences:
            outputs, _ = self._step()
            if outputs:
                got = outputs[0]
                made = self._outputs.process_outputs(
                    got.outputs, engine_core_timestamp=got.timestamp, weight_version=got.weight_version
                )
                steps, done = steps + 1, done + len(made.request_outputs)
        return 1e3 * (time.thread_time() - cpu) / steps, 1e3 * (time.perf_counter() - wall) / steps

    def _add(self, name: str, sampling: Sampling) -> None:
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.request import Request

        request = EngineCoreRequest(
            request_id=name,
            prompt_token_ids=[5, 6, 8, 9],
            mm_features=None,
            sampling_params=sampling_params(sampling, 0, TOKENS, 150_000),
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt="0",
            data_parallel_rank=None,
        )
        request.external_req_id = name
        self._outputs.add_request(request, None, None, 0)
        self._core.scheduler.add_request(Request.from_engine_core_request(request, self._hasher))


if __name__ == "__main__":
    raise SystemExit(main())
