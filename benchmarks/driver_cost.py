"""What a long response costs the driver: CPU from its steps to the batch, and the bytes it holds per token.

    make bench NAME=driver_cost

Groups of 16 responses of 8,192 tokens in steps of 64 under CAPO, made here; one thread, CPU time of this process.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np

from capo_ray.config.credit import CapoConfig
from capo_ray.credit import assign_credit
from capo_ray.flow.figures import update_figures
from capo_ray.flow.group import CreditedGroup, to_samples
from capo_ray.packing import build_batch
from capo_ray.steps import split_steps
from capo_ray.types import (
    Batch,
    Completion,
    Critique,
    Evidence,
    Group,
    Judged,
    Problem,
    Provenance,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
)

GROUP_SIZE, STEP_TOKENS, REPEATS = 16, 64, 5
PIECE = "abc "


def roll_out(number: int, sample: int, num_tokens: int) -> Trajectory:
    """A response of that many tokens, a blank line after each step."""
    rng = np.random.default_rng((number, sample))
    step = PIECE * (STEP_TOKENS - 1) + "\n\n"
    text = step * (num_tokens // STEP_TOKENS)
    widths = np.full(num_tokens, len(PIECE))
    widths[STEP_TOKENS - 1 :: STEP_TOKENS] = 2
    ids, logprobs = rng.integers(0, 150_000, num_tokens, np.int32), -rng.random(num_tokens, np.float32)
    response = Completion(ids, logprobs, np.cumsum(widths), text, (VersionRun(0, num_tokens),), "stop")
    return Trajectory(TrajectoryKey(f"p{number}", number, sample), np.arange(256, dtype=np.int32), response)


def judge(trajectory: Trajectory, rng: random.Random) -> Judged:
    """The response cut into steps, with four critiques that flag a tenth of them each."""
    steps = split_steps(trajectory.response)
    votes = tuple(
        Critique(frozenset(k for k in range(len(steps)) if rng.random() < 0.1), None, "", "", Provenance("c", "", v))
        for v in range(4)
    )
    return Judged(trajectory, Verdict(rng.randint(0, 1), ""), steps, Evidence(critiques=votes))


def measure(num_groups: int, num_tokens: int) -> dict[str, float]:
    """CPU milliseconds per response of each stage, the least of some repeats; groups of `num_tokens` responses."""
    least: dict[str, float] = {}
    rolled = [[roll_out(g, i, num_tokens) for i in range(GROUP_SIZE)] for g in range(num_groups)]
    for _ in range(REPEATS):
        marks = [time.process_time()]
        for row in rolled:
            for trajectory in row:
                split_steps(trajectory.response)
        marks.append(time.process_time())
        rng = random.Random(1)
        groups = [Group(g, Problem(f"p{g}", "", ""), tuple(judge(t, rng) for t in r)) for g, r in enumerate(rolled)]
        began = time.process_time()
        credited = [CreditedGroup(group, assign_credit(group, CapoConfig()), {}, 0.0) for group in groups]
        marks.append(marks[-1] + time.process_time() - began)
        began = time.process_time()
        update_figures(credited, {})
        marks.append(marks[-1] + time.process_time() - began)
        began = time.process_time()
        batch(credited)
        marks.append(marks[-1] + time.process_time() - began)
        for name, a, b in zip(("steps", "credit", "figures", "batch"), marks, marks[1:], strict=False):
            ms = 1000 * (b - a) / (num_groups * GROUP_SIZE)
            least[f"{name}_ms"] = min(ms, least.get(f"{name}_ms", ms))
    return {**least, "total_ms": sum(least.values())}


def batch(groups: list[CreditedGroup]) -> Batch:
    samples = [sample for group in groups for sample in to_samples(group)]
    return build_batch(samples, num_ranks=8, microbatch_tokens=32_768, aggregation="sequence_mean")


def bytes_per_token(num_responses: int, num_tokens: int) -> dict[str, float]:
    """Bytes held per token by credited groups, and by them together with samples and batch."""
    rng = random.Random(1)

    def credited_group(g: int, num_tokens: int) -> CreditedGroup:
        members = tuple(judge(roll_out(g, i, num_tokens), rng) for i in range(GROUP_SIZE))
        group = Group(g, Problem(f"p{g}", "", ""), members)
        return CreditedGroup(group, assign_credit(group, CapoConfig()), {}, 0.0)

    batch([credited_group(0, num_tokens)])  # what is imported at first use is no part of a response
    tracemalloc.start()
    kept = [credited_group(g, num_tokens) for g in range(num_responses // GROUP_SIZE)]
    count = len(kept) * GROUP_SIZE * num_tokens
    credited = tracemalloc.get_traced_memory()[0] / count
    made = batch(kept)
    whole = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    assert sum(len(cell) for row in made.grid for cell in row) == len(kept) * GROUP_SIZE
    return {"credited_bytes": credited, "with_batch_bytes": whole}


def main() -> None:
    from records import record  # beside this file, when it is run and not imported

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=record("driver_cost.json"))
    arguments = parser.parse_args()
    result = {"cpu_per_8k_response": measure(2, 8192), "per_token_of_16k_responses": bytes_per_token(192, 16_384)}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
