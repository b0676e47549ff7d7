"""What it costs to score the reference answer after each step of a response, as ACPO and MIG do: tokens and seconds.

    make bench NAME=prefix_scoring

One real vLLM engine (a random model of 4 layers x 256), 4 siblings with one prompt, K steps each, an answer of 6 tokens
behind a cue of 4. The K+1 prefixes of all siblings go to the engine together, as a run sends them.
    shared      through `VllmEngine.score`: a prefix reads its whole blocks from the cache, those that a prefix of the
                same engine step is only computing included
    separate    every prefix is computed anew
    packed      what one pass over the tree of all prefixes would compute, by count: vLLM has none
Both give the same logprobs, or the benchmark fails. Medians of the repeats, arms interleaved, the cache emptied before
each. Goal at 1,024 tokens: at most 1.3 times the tokens of a packed pass.
Writes prefix_scoring.json (see records.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from typing import Any

from records import record
from tiny import write_tiny_model

from capo_ray.engines import EngineSpec, VllmEngine

RESULTS = record("prefix_scoring.json")
SIBLINGS, PROMPT, CUE, ANSWER = 4, 40, 4, 6
SETTINGS = ((48, 6), (256, 16), (1024, 32))
"""(tokens of a response, steps)"""
GOAL = 1.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as directory:
        write_tiny_model(directory, hidden=256, layers=4, heads=4, head_dim=64, init_scale=2.0)
        engine = VllmEngine(EngineSpec(model_path=directory, max_model_len=2048, takes_weights=False))
        engine.start()
        try:
            rows = [asyncio.run(compare(engine, *setting, repeats)) for setting in SETTINGS]
        finally:
            engine.close()
    RESULTS.write_text(json.dumps({"cores": os.cpu_count(), "repeats": repeats, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(
            f"{row['response_tokens']:>5} tokens, {row['steps']:>2} steps: computed {row['shared_tokens']:,} "
            f"(packed {row['packed_tokens']:,}: {row['over_packed']:.2f}x; separate {row['separate_tokens']:,}), "
            f"{row['shared_s']:.2f} s against {row['separate_s']:.2f} s: {row['speedup']:.1f}x"
        )
    return 0 if rows[-1]["over_packed"] <= GOAL else 1


def draw(response_tokens: int, steps: int, vocab: int) -> tuple[list[tuple[int, ...]], int]:
    """The K+1 sequences of each sibling, equal ones once, and the tokens of the tree that they make."""
    rng = random.Random(f"{response_tokens}/{steps}")
    ids = lambda count: tuple(rng.randrange(3, vocab) for _ in range(count))  # noqa: E731
    prompt, tail = ids(PROMPT), ids(CUE + ANSWER)
    cuts = [response_tokens * k // steps for k in range(steps + 1)]
    sequences = [
        prompt + response[:cut] + tail for response in (ids(response_tokens) for _ in range(SIBLINGS)) for cut in cuts
    ]
    unique = list(dict.fromkeys(sequences))
    return unique, PROMPT + SIBLINGS * response_tokens + len(unique) * len(tail)


async def compare(engine: VllmEngine, response_tokens: int, steps: int, repeats: int) -> dict[str, Any]:
    """The figures of one setting."""
    sequences, packed = draw(response_tokens, steps, 90)
    starts = [len(sequence) - ANSWER for sequence in sequences]
    seconds: dict[str, list[float]] = {"shared": [], "separate": []}
    computed: dict[str, int] = {}
    said: dict[str, Any] = {}
    for _ in range(repeats):
        for arm, times in seconds.items():
            engine._score_from_cache = arm == "shared"
            await engine._between_steps(lambda core: core.reset_prefix_cache())
            before, started = engine.stats(), time.perf_counter()
            said[arm] = await engine.score(sequences, starts)
            times.append(time.perf_counter() - started)
            after = engine.stats()
            read = {
                name: after[f"{name}_total"] - before[f"{name}_total"]
                for name in ("prompt_tokens", "cached_prompt_tokens")
            }
            computed[arm] = int(read["prompt_tokens"] - read["cached_prompt_tokens"])
    worst = max(
        abs(a - b) for x, y in zip(said["shared"], said["separate"], strict=True) for a, b in zip(x, y, strict=True)
    )
    if worst > 1e-4:
        raise SystemExit(f"the arms must give the same logprobs (largest difference {worst:.1e})")
    shared, separate = (statistics.median(seconds[arm]) for arm in ("shared", "separate"))
    return {
        "response_tokens": response_tokens,
        "steps": steps,
        "sequences": len(sequences),
        "shared_tokens": computed["shared"],
        "separate_tokens": computed["separate"],
        "packed_tokens": packed,
        "over_packed": round(computed["shared"] / packed, 3),
        "shared_s": round(shared, 4),
        "separate_s": round(separate, 4),
        "speedup": round(separate / shared, 2),
        "largest_difference": worst,
    }


if __name__ == "__main__":
    sys.exit(main())
