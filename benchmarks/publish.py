"""Seconds from a trained learner to an engine that serves its weights: a real learner actor, a real engine actor.

    make bench NAME=publish [ARGS="--models 1M,30M,135M --dtypes float32,bfloat16 --repeats 5"]
    make bench NAME=publish ARGS="--transports host,gloo,delta --engines 1,2"
    make bench NAME=publish ARGS="--models laptop,135M --lora-rank 16 --adapters merged,alone"

Each transport; `delta` is gloo with `weights.delta_frac`, and 1% of the weights change between publishes, whatever the
transport. With `--lora-rank` adapters on all linear layers are trained: every number of them changes, and
they are sent `alone` or `merged`. Whole publishes are timed from outside; the parts are timed one by one on the same
actors afterwards. Everything stands beside a memcpy of the same bytes in the learner's process. Models are random, of
Qwen2's architecture; 135M has the shape of SmolLM2-135M; `laptop` is the shipped policy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from records import record
from tiny import write_tokenizer

from capo_ray.config.lora import LoraConfig
from capo_ray.config.loss import LossConfig
from capo_ray.config.sections import LearnerConfig
from capo_ray.engines import EngineSpec
from capo_ray.learners import LearnerSpec
from capo_ray.learners.backend import trained
from capo_ray.place.agreement import CANARY_TOKENS
from capo_ray.place.roles.learner import LearnerRank
from capo_ray.place.roles.rollout import RolloutWorker
from capo_ray.problems import asset_path
from capo_ray.protocols import WeightsHandle
from capo_ray.sizing import store_bytes
from capo_ray.weights import Apart, Meeting, checkpoint_shapes, read_manifest, verify_handle

RESULTS = record("publish.json")
CANARY = tuple(range(3, 3 + CANARY_TOKENS))
ANY = Apart(100.0, 100.0)
BUCKET_BYTES = 64 << 20
CHANGED_FRAC = 0.01
SHAPES = {  # hidden, layers, heads, key-value heads, intermediate, vocabulary
    "1M": (128, 4, 4, 2, 512, 256),
    "30M": (384, 12, 6, 2, 1280, 16384),
    "135M": (576, 30, 9, 3, 1536, 49152),
}


def write_model(path: Path, size: str) -> int:
    """The number of parameters of a model written under `path`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if size == "laptop":
        shutil.copytree(asset_path("laptop", "policy"), path, dirs_exist_ok=True)
        return sum(math.prod(shape) for shape in checkpoint_shapes(str(path)).values())

    hidden, layers, heads, kv_heads, intermediate, vocab = SHAPES[size]
    write_tokenizer(path)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=intermediate,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    model.save_pretrained(path)
    return sum(p.numel() for p in model.parameters())


class TimedLearner(LearnerRank):
    """A learner rank that also times the parts of a publish."""

    def move(self, frac: float) -> int:
        """The next version: so much of every tensor changed."""
        self._learner.version += 1
        generator = torch.Generator().manual_seed(self._learner.version)
        with torch.no_grad():
            for param in trained(self._learner._backend._module):  # type: ignore[attr-defined]
                if self._learner.spec.learner.lora.rank:
                    param.add_(1e-3 * torch.randn(param.shape, generator=generator).to(param))
                    continue
                mask = torch.rand(param.shape, generator=generator) < frac
                param.copy_(torch.where(mask, param * 1.5, param))
        return self._learner.version

    def parts(self) -> dict[str, float]:
        """Seconds of the parts: the canary's forward pass, the gather, the seal's check of the weights, and so on."""
        seconds = {}
        started = time.perf_counter()
        self._learner.logprobs([CANARY], [1])
        seconds["learner_canary_s"] = time.perf_counter() - started
        started = time.perf_counter()
        self._writer.begin(1, self._learner.sent_bytes)
        self._learner.visit_weights(self._writer.add)
        seconds["learner_gather_s"] = time.perf_counter() - started
        started = time.perf_counter()
        self._witness.begin(1)
        self._learner.visit_weights(self._witness.add)
        handle = self._writer.seal(self._witness, None)
        seconds["learner_check_s"] = time.perf_counter() - started
        source = handle.payload
        assert isinstance(source, np.ndarray)
        target = np.zeros_like(source)
        np.copyto(target, source)
        started = time.perf_counter()
        np.copyto(target, source)
        seconds["memcpy_s"] = time.perf_counter() - started
        started = time.perf_counter()
        verify_handle(handle)
        seconds["engine_verify_s"] = time.perf_counter() - started
        return seconds


def measure(
    size: str, dtype: str, transport: str, num_engines: int, adapters: str, args: argparse.Namespace
) -> dict[str, Any]:
    """The figures of one model in one dtype, sent one way."""
    repeats, num_threads = args.repeats, args.threads
    lora = LoraConfig(rank=args.lora_rank)
    alone = bool(lora.rank) and adapters == "alone"
    with tempfile.TemporaryDirectory() as folder:
        params = write_model(Path(folder), size)
        spec = LearnerSpec(
            model_path=folder,
            dtype=dtype,
            learner=LearnerConfig(num_threads=num_threads, backend="torch", lora=lora),
            loss=LossConfig(kl_coef=0.0),
            temperature=1.0,
            total_updates=1,
            device="cpu",
            adapters_alone=alone,
        )
        engine_spec = EngineSpec(
            model_path=folder,
            dtype=dtype,  # type: ignore[arg-type]
            max_model_len=256,
            kv_cache_gib=0.1,
            adapters=lora if alone else None,
        )
        env = {"env_vars": {"OMP_NUM_THREADS": str(num_threads)}}
        learner: Any = ray.remote(TimedLearner).options(num_cpus=1, runtime_env=env).remote(0)
        made: Any = ray.remote(RolloutWorker).options(num_cpus=0.5)
        engines = [made.remote(engine_spec) for _ in range(num_engines)]
        ray.get([learner.start.remote(spec, CANARY), *(engine.start.remote() for engine in engines)])
        address = ray.get(learner.rendezvous.remote(True))
        rows = [publish(learner, engines, transport, address) for _ in range(repeats + 1)]
        parts = [ray.get(learner.parts.remote()) for _ in range(repeats)]
        for actor in (learner, *engines):
            ray.kill(actor)
    first, rows = rows[0], rows[1:]
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    medians |= {name: statistics.median(row[name] for row in parts) for name in parts[0]}
    total = medians["total_s"]
    return {
        "model": size,
        "parameters": params,
        "dtype": dtype,
        "transport": transport,
        "engines": num_engines,
        "lora_rank": lora.rank,
        "adapters": adapters if lora.rank else "",
        "bytes": int(ray_bytes(params, dtype)),
        "first_total_s": first["total_s"],
        "range_total_s": [min(row["total_s"] for row in rows), max(row["total_s"] for row in rows)],
        **medians,
        "total_over_memcpy": total / medians["memcpy_s"],
        "without_canaries_over_memcpy": medians["without_canaries_s"] / medians["memcpy_s"],
    }


def ray_bytes(params: int, dtype: str) -> int:
    """The bytes of a version."""
    return params * (4 if dtype == "float32" else 2)


def publish(learner: Any, engines: list[Any], transport: str, address: str) -> dict[str, float]:
    """One publish as the driver makes it: with a canary, and then once more without."""
    figures: dict[str, float] = {}
    for name, allowed in (("total_s", ANY), ("without_canaries_s", None)):
        number = ray.get(learner.move.remote(CHANGED_FRAC))
        started = time.perf_counter()
        if transport == "host":
            _, gathered = learner.gather.options(num_returns=2).remote()
            token: Any = [gathered]
            sent = None
        else:
            frac = 0.3 if transport == "delta" else 0.0
            token = Meeting(address, 1 + len(engines), "gloo", number, 60.0, BUCKET_BYTES, frac)
            sent, gathered = learner.send.remote(token), WeightsHandle(number, "", token)
        told, handle = learner.seal.options(num_returns=2).remote(allowed, token)
        for engine in engines:
            engine.expect_weights.remote(gathered)
        version, fingerprint, _ = ray.get(told)
        ended_sending = time.perf_counter()
        held = ray.get([engine.load_weights.remote(handle, version, fingerprint) for engine in engines])
        assert held == [number] * len(engines)
        ended = time.perf_counter()
        figures[name] = ended - started
        if sent is None:
            figures["sent_bytes"] = read_manifest(ray.get(handle).manifest).payload_bytes
        else:
            figures["sent_bytes"] = ray.get(sent)[2]["weights/sent_mib"] * 2**20
        if allowed is not None:
            figures["learner_s"], figures["engine_s"] = ended_sending - started, ended - ended_sending
            figures["engine_paused_s"] = max(one["swap_s"] for one in ray.get([e.ping.remote() for e in engines]))
        del gathered, handle
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="1M,30M,135M")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--transports", default="host", help="of host, gloo and delta")
    parser.add_argument("--engines", default="1", help="how many, of each way")
    parser.add_argument("--lora-rank", type=int, default=0, help="train adapters of this rank in place of the model")
    parser.add_argument("--adapters", default="alone", help="of alone and merged; with --lora-rank")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the learner, as learner.num_threads")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    store = store_bytes(ray_bytes(200_000_000, "float32"), 1 << 40)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=store, log_to_driver=False)
    rows = []
    for size in args.models.split(","):
        counts, sent = map(int, args.engines.split(",")), args.adapters.split(",")
        for way in product(args.dtypes.split(","), args.transports.split(","), counts, sent):
            rows.append(measure(size, *way, args))
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
    args.out.write_text(json.dumps({"threads": args.threads, "machine": machine, "rows": rows}, indent=1) + "\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
