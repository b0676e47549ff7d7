"""What a swap of the weights costs an engine that decodes: steps lost, for sequences recomputed and kept.

    make bench NAME=swap

A real engine with a random policy of 34M parameters, 15 sequences of about 300 tokens under way, one thread; new
weights with a canary as long as a run's arrive five times for each value of `weights.running`. Counted from the moment
at which the stepping thread turns to the swap until every sequence decodes again (and ten steps more): the tokens that
the same time of undisturbed decoding would have given, less those that came, over the number of sequences. By part:
    load        the weights are taken over: loaded beside before on the CPU, from host to kernels' layout on a GPU
    canary      its own prefill, before anything else is computed
    after       sequences computed anew while others decode on
Before that, while the engine serves: `beside`, the steps lost to reading, verifying and loading on another thread, and
of them `no_core`: the stepping thread was ready to run and had no core (the kernel's own count, schedstat), beyond
what it waited so while nothing was loaded, which is in a step's time already (`waiting_frac`). Tokens come
from vLLM's scheduler, times from the stepping thread's clock; medians of the swaps. Goal: at most two steps
lost with `keep`, all parts together. Writes swap.json (see records.py).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from records import record
from tiny import write_tiny_model

from capo_ray.engines import EngineSpec, VllmEngine
from capo_ray.place.agreement import CANARY_TOKENS
from capo_ray.protocols import Sampling
from capo_ray.weights import Apart, Canary, build_handle

RESULTS = record("swap.json")
SEQUENCES, PROMPT, RESPONSE, CANARY = 15, 160, 400, CANARY_TOKENS
BEFORE, MEASURED, AFTER = 120, 60, 10
GOAL = 2.0


class Watch:
    """When each step of an engine ended and how many tokens it sampled; when each part of a swap began and ended."""

    def __init__(self, engine: VllmEngine) -> None:
        import capo_ray.engines.swap as swap

        self.steps: list[tuple[float, int]] = []
        self.parts: dict[str, tuple[float, float]] = {}
        self.at_swap: Callable[[], float] = float
        self.waited_at_swap = 0.0
        client: Any = engine._stepper.engine.engine_core
        scheduler = client.engine_core.scheduler
        usual = scheduler.update_from_output

        def update(sent: Any, got: Any) -> Any:
            outputs = usual(sent, got)
            sampled = sum(len(o.new_token_ids) for each in outputs.values() for o in each.outputs)
            self.steps.append((time.perf_counter(), sampled))
            return outputs

        scheduler.update_from_output = update
        module: Any = swap
        for name in ("swap", "_load", "_prove"):
            self._time(module, name)
        import capo_ray.engines.vllm_engine

        face: Any = capo_ray.engines.vllm_engine
        face.swap = module.swap
        params = face.sampling_params

        def endless(*args: Any) -> Any:
            made = params(*args)
            made.ignore_eos = True
            return made

        face.sampling_params = endless

    def _time(self, module: Any, name: str) -> None:
        usual = getattr(module, name)

        def timed(*args: Any, **more: Any) -> Any:
            began = time.perf_counter()
            if name == "swap":
                self.waited_at_swap = self.at_swap()
            try:
                return usual(*args, **more)
            finally:
                self.parts[name] = began, time.perf_counter()

        setattr(module, name, timed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=5)
    parser.add_argument("--running", default="recompute,keep")
    parser.add_argument("--out", default=str(RESULTS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write_tiny_model(directory, hidden=512, layers=8, heads=8, head_dim=64, intermediate=2048)
        engine = VllmEngine(
            EngineSpec(model_path=directory, max_model_len=640, max_num_seqs=32, kv_cache_gib=1.0, deadline_s=300)
        )
        engine.start()
        try:
            rows = asyncio.run(measure(engine, directory, arguments.swaps, arguments.running.split(",")))
        finally:
            engine.close()
    result = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "swaps": arguments.swaps, "rows": rows}
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['running']:<9} a step {row['step_ms']:.0f} ms; lost {row['steps_lost']:.1f} steps: load "
            f"{row['load_steps']:.1f} ({row['load_ms']:.0f} ms), canary {row['canary_steps']:.1f} "
            f"({row['canary_ms']:.0f} ms), after {row['after_steps']:.1f}; before it {row['beside_steps']:.1f} "
            f"({row['beside_ms']:.0f} ms; without a core {row['no_core_steps']:.1f})"
        )
    return 0 if rows[-1]["steps_lost"] <= GOAL else 1


async def measure(engine: VllmEngine, directory: str, swaps: int, values: list[str]) -> list[dict[str, Any]]:
    """One row per value of `weights.running`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    canary_ids = [5 + i % 60 for i in range(CANARY)]
    with torch.no_grad():
        logits = model(torch.tensor([canary_ids])).logits[0, :-1].float()
    picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(canary_ids[1:])[:, None])[:, 0]
    canary = Canary(tuple(canary_ids), tuple(picked.tolist()), Apart(1e-3, 1e-3))
    state = dict(model.named_parameters())
    watch, rows, version = Watch(engine), [], 0
    for running in values:
        engine.spec = dataclasses.replace(engine.spec, running=running)  # type: ignore[arg-type]
        lost: list[dict[str, float]] = []
        for _ in range(swaps):
            version += 1
            lost.append(await one_swap(engine, watch, build_handle(state, version, canary)))
        rows.append({"running": running} | {k: round(statistics.median(x[k] for x in lost), 2) for k in lost[0]})
    return rows


def waited_s(engine: VllmEngine) -> float:
    """How long the stepping thread has been ready to run, in all, and had no core."""
    thread = engine._stepper._thread.native_id
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9


async def one_swap(engine: VllmEngine, watch: Watch, handle: Any) -> dict[str, float]:
    """What one swap cost, in steps of the decoding that it interrupted."""
    sampling = Sampling(max_tokens=RESPONSE)
    tasks = [asyncio.create_task(engine.generate([5 + i] * PROMPT, sampling)) for i in range(SEQUENCES)]
    watch.steps.clear()
    while sum(n == SEQUENCES for _, n in watch.steps) < BEFORE - MEASURED:
        await asyncio.sleep(0.02)
    calm_waited, calm = waited_s(engine), time.perf_counter()
    while sum(n == SEQUENCES for _, n in watch.steps) < BEFORE:
        await asyncio.sleep(0.02)
    waited = waited_s(engine)
    sent = time.perf_counter()
    waiting = (waited - calm_waited) / (sent - calm)
    watch.at_swap = lambda: waited_s(engine)
    await engine.load_weights(handle)
    waited = watch.waited_at_swap - waited
    done = watch.parts["swap"][1]
    while sum(n == SEQUENCES for t, n in watch.steps if t > done) < AFTER + 5:
        await asyncio.sleep(0.02)
    steps = list(watch.steps)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    began = watch.parts["swap"][0]
    before = [t for t, _ in steps if t <= sent][-MEASURED:]
    step_s = (before[-1] - before[0]) / (len(before) - 1)
    whole = [i for i, (t, n) in enumerate(steps) if t > done and n == SEQUENCES]
    end = steps[whole[AFTER]][0]
    got = sum(n for t, n in steps if began < t <= end)
    lost = (end - began) / step_s - got / SEQUENCES
    load = watch.parts["_load"][1] - watch.parts["_load"][0]
    proof = watch.parts["_prove"]
    beside = sum(n for t, n in steps if proof[0] < t <= proof[1]) / SEQUENCES
    canary = proof[1] - proof[0]
    served = sum(n for t, n in steps if sent < t <= began) / SEQUENCES
    return {
        "step_ms": 1e3 * step_s,
        "beside_ms": 1e3 * (began - sent),
        "beside_steps": (began - sent) / step_s - served,
        "no_core_steps": (waited - waiting * (began - sent)) / step_s,
        "waiting_frac": waiting,
        "steps_lost": lost,
        "load_ms": 1e3 * load,
        "load_steps": load / step_s,
        "canary_ms": 1e3 * canary,
        "canary_steps": canary / step_s - beside,
        "after_steps": lost - load / step_s - (canary / step_s - beside),
    }


if __name__ == "__main__":
    raise SystemExit(main())
