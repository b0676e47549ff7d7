"""Seconds for which a checkpoint holds up the driver's event loop and the learner, for a policy of 135M parameters.

    make bench NAME=checkpoint ARGS="--output benchmarks/results/checkpoint.json"

One learner rank on the CPU behind its Ray actor, the real store on disk, random weights in the shape of SmolLM2-135M,
fp32, ZeRO stage 2: 1.6 GB of shards and 0.5 GB of policy. The loop's longest stop is the longest gap of a heart that
beats every 10 ms; the learner stands still from the call until its next update may begin.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from capo_ray.arrays import Runs
from capo_ray.checkpoint import CheckpointStore
from capo_ray.config import TrainConfig
from capo_ray.flow.saving import Saver
from capo_ray.flow.state import RunState
from capo_ray.packing import build_batch
from capo_ray.types import Batch, Sample, TrajectoryKey, VersionRun

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
PROMPT, RESPONSE = 8, 24
BEAT_S = 0.01


def write_model(path: Path) -> int:
    """The number of parameters of the random model written to `path`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model.save_pretrained(path)
    return sum(p.numel() for p in model.parameters())


def make_batch() -> Batch:
    """One short response: what is measured is not the update."""
    sample = Sample(
        key=TrajectoryKey("p", 0, 0),
        token_ids=np.arange(3, 3 + PROMPT + RESPONSE, dtype=np.int32),
        sampler_logprobs=np.full(RESPONSE, -10.8, dtype=np.float32),
        advantages=Runs.constant(1.0, RESPONSE),
        versions=(VersionRun(0, RESPONSE),),
    )
    return build_batch([sample], num_ranks=1, microbatch_tokens=2048, aggregation="token_mean")


class Heart:
    """The longest time, in seconds, for which the event loop served nobody."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def beat(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.perf_counter()
            self.longest_s, last = max(self.longest_s, now - last - BEAT_S), now


async def measure(learner: Any, config: TrainConfig, directory: Path, repeats: int) -> list[dict[str, float]]:
    """One row per checkpoint."""
    await learner.start()
    batch, state = make_batch(), RunState()
    parts: Any = SimpleNamespace(
        config=config,
        learner=learner,
        reward_model=None,
        checkpoints=CheckpointStore(directory / "checkpoints", 1),
    )
    saver = Saver(parts, state, lambda: state.to_payload([], {}, 0.0), lambda: None)

    async def timed_update() -> float:
        started = time.perf_counter()
        state.version = (await learner.update(batch)).version
        return time.perf_counter() - started

    await timed_update()
    alone = [await timed_update() for _ in range(3)]
    rows = []
    for _ in range(repeats):
        heart = Heart()
        beating = asyncio.create_task(heart.beat())
        started = time.perf_counter()
        await saver.begin()
        stood_s = time.perf_counter() - started
        settled = asyncio.ensure_future(saver.settle())
        beside = []
        while not settled.done():
            beside.append(await timed_update())
            await asyncio.sleep(0)
        await settled
        sealed_s = time.perf_counter() - started
        beating.cancel()
        path = parts.checkpoints.latest()
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        row = {
            "loop_longest_stop_s": heart.longest_s,
            "learner_stood_s": stood_s,
            "sealed_after_s": sealed_s,
            "update_alone_s": statistics.median(alone),
            "update_beside_writing_s": statistics.median(beside) if beside else float("nan"),
            "updates_beside_writing": float(len(beside)),
            "bytes": float(size),
        }
        print(json.dumps({name: round(value, 3) for name, value in row.items()}), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tree", default="this", help="name of the measured tree in the record")
    parser.add_argument("--output", type=Path, help="JSON file; rows of other trees in it are kept")
    args = parser.parse_args()
    import ray

    from capo_ray.place.placement import Places
    from capo_ray.place.role import Site
    from capo_ray.place.roles.learner import build

    with tempfile.TemporaryDirectory() as folder:
        num_params = write_model(Path(folder, "model"))
        config = TrainConfig.model_validate(
            {"model": {"path": f"{folder}/model"}, "loss": {"kl_coef": 0.0}, "learner": {"num_epochs": 1}}
        )
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        places = Places(config)
        learner = build(Site(config, Path(folder), places))

        async def reserve_and_measure() -> list[dict[str, float]]:
            await places.reserve()
            return await measure(learner, config, Path(folder), args.repeats)

        try:
            rows = asyncio.run(reserve_and_measure())
        finally:
            learner.close()
            ray.shutdown()
    median = {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
    record = {"median": median, "rows": rows, "load_1min": round(os.getloadavg()[0], 1), "parameters": num_params}
    print(json.dumps({args.tree: median}, indent=1))
    if args.output:
        whole = json.loads(args.output.read_text()) if args.output.exists() else {}
        whole |= {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", args.tree: record}
        args.output.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
