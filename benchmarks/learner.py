"""The learner's step against a padded one, TRL's and a hand-written ceiling, on the same samples.

    make bench NAME=learner            (ARGS='--models laptop --repeats 5', `--quick` for one case a model)

    ours      `Learner.update` in plain torch: packing, shared prompts, head in tiles, loss, clipping, AdamW
    padded    transformers' model, rows of 8 in the order of arrival, padded, with all logits, as a trainer has them
              that does none of this
    trl       TRL's own trainer on the same rows of 8 (`learner_trl`), where TRL is installed
    ceiling   the same layers written out (`learner_parts`): one row a group, its prompt once, no padding, head and loss
              in one pass over blocks of logits (which only a loss linear in logprobs allows)

Advantages are random, logprobs of the sampler the policy's own, so that all arms have the same gradient (held to 1e-3
here). CPU seconds of one thread, arms interleaved, medians of repeats and their range; shares of prompts are of the
tokens that padded rows hold without padding. Memory: the peak of resident bytes of a head's forward and backward pass
over 1,024 tokens and 151,936 words, without the gradients. Needs torch, transformers and this package.
Goals: at least 0.85 of the ceiling, three times TRL where prompts are half of the tokens, logits at most 5% of naive
bytes. Writes benchmarks/results/learner.json.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learner_parts import Ceiling, Group, padded_backward
from learner_trl import is_here, trl_backward
from records import record
from torch import nn

from capo_ray.arrays import Runs
from capo_ray.config.loss import LossConfig
from capo_ray.config.sections import LearnerConfig
from capo_ray.learners import Learner, LearnerSpec
from capo_ray.loss import head_logprobs
from capo_ray.packing import build_batch
from capo_ray.types import Sample, TrajectoryKey, VersionRun

RESULTS = record("learner.json")
MICROBATCH, GROUP, LR = 2048, 8, 1e-4
SIGMAS, SHARES = (0.3, 0.8, 1.2), (0.1, 0.5, 0.8)
FIELDS = ("vocab", "hidden", "inner", "layers", "heads", "kv", "dim", "groups", "response")
SIZES = {  # and of how many groups a step is, of which mean response
    "laptop": (103, 96, 288, 3, 3, 3, 32, 4, 48),
    "words_152k": (151936, 64, 192, 2, 2, 2, 32, 1, 48),
    "smollm2_135m": (49152, 576, 1536, 30, 9, 3, 64, 1, 12),
}
MODELS = {name: dict(zip(FIELDS, sizes, strict=True)) for name, sizes in SIZES.items()}


def write_model(path: Path, shape: dict[str, int]) -> None:
    """A Llama or, for the laptop, Qwen3-like model of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["inner"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv"],
        head_dim=shape["dim"], tie_word_embeddings=True, max_position_embeddings=8192,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)


def draw_groups(shape: dict[str, int], sigma: float, share: float) -> list[Group]:
    """Prompts and their responses, log-normal in length with one mean."""
    rng = random.Random(0)

    def words(n: int) -> list[int]:
        return [rng.randrange(shape["vocab"]) for _ in range(n)]

    mean = shape["response"]
    prompt = max(2, round(mean * share / (1 - share)))
    return [
        (words(prompt), [words(max(1, round(mean * rng.lognormvariate(-(sigma**2) / 2, sigma)))) for _ in range(GROUP)])
        for _ in range(shape["groups"])
    ]


def to_arms(path: Path, groups: list[Group]) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Each arm's step, and the model whose gradient it leaves."""
    from transformers import AutoModelForCausalLM

    rng = random.Random(1)
    advantages = [rng.gauss(0, 1) for _, responses in groups for _ in responses]
    count = sum(len(r) for _, responses in groups for r in responses)
    samples = [
        Sample(
            TrajectoryKey("p", g, i),
            np.array([*p, *r], np.int32),
            np.full(len(r), -1.0, np.float32),
            Runs.constant(advantages[g * GROUP + i], len(r)),
            (VersionRun(0, len(r)),),
        )
        for g, (p, responses) in enumerate(groups)
        for i, r in enumerate(responses)
    ]
    options = {"num_ranks": 1, "microbatch_tokens": MICROBATCH, "aggregation": "token_mean"}
    config = LearnerConfig(backend="torch", num_epochs=1, lr=LR, schedule="constant")
    loss = LossConfig(kl_coef=0.0, behaviour="recompute")  # the ratio is 1, as in the other arms
    spec = LearnerSpec(
        model_path=str(path), dtype="float32", learner=config, loss=loss, temperature=1.0, total_updates=9, device="cpu"
    )
    learner = Learner(spec)
    models: dict[str, Any] = {"ours": learner._backend._module}  # type: ignore[attr-defined]
    models |= {name: AutoModelForCausalLM.from_pretrained(path).train() for name in ("padded", "ceiling")}
    peers: dict[str, Callable[[], None]] = {}
    if is_here():
        models["trl"], peers["trl"] = trl_backward(path, groups, advantages, GROUP)
    adams = {name: torch.optim.AdamW(models[name].parameters(), lr=LR, weight_decay=0.0) for name in models}

    def moved(name: str, backward: Callable[[], None]) -> Callable[[], None]:
        def step() -> None:
            backward()
            nn.utils.clip_grad_norm_(models[name].parameters(), 1.0)
            adams[name].step()
            adams[name].zero_grad(set_to_none=True)

        return step

    hand = Ceiling(models["ceiling"])

    def by_hand() -> None:
        for g, group in enumerate(groups):
            hand.backward(group, advantages[g * GROUP : (g + 1) * GROUP], count)

    return {
        "ours": lambda: learner.update(build_batch(samples, **options).column(0)),  # type: ignore[arg-type]
        "padded": moved("padded", lambda: padded_backward(models["padded"], groups, advantages, count)),
        "ceiling": moved("ceiling", by_hand),
        **{name: moved(name, backward) for name, backward in peers.items()},
    }, models


def measure(name: str, sigma: float, share: float, repeats: int) -> dict[str, Any]:
    """CPU seconds of each arm, and ours against the others."""
    shape = MODELS[name]
    groups = draw_groups(shape, sigma, share)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), shape)
        arms, models = to_arms(Path(folder), groups)
        before = [p.detach().clone() for p in models["ceiling"].parameters()]
        first: list[torch.Tensor] = []
        for arm, step in arms.items():  # the first move warms up, and shows that all arms make the same
            step()
            moves = torch.cat([(p - b).flatten() for p, b in zip(models[arm].parameters(), before, strict=True)])
            first.append(moves)
            alike = torch.nn.functional.cosine_similarity(moves.double(), first[0].double(), dim=0)  # of millions
            assert alike > 0.999, f"{arm} moves otherwise"
        for _ in range(repeats):
            for arm, step in arms.items():
                started = time.process_time()
                step()
                seconds.setdefault(arm, []).append(time.process_time() - started)
    tokens = sum(len(p) + len(r) for p, responses in groups for r in responses)
    ratios = {other: [b / a for a, b in zip(seconds["ours"], seconds[other], strict=True)] for other in seconds}
    return {
        "model": name, "sigma": sigma, "prompt_share": share, "sample_tokens": tokens,
        "computed_tokens": sum(len(p) + sum(map(len, responses)) for p, responses in groups),
        "cpu_s": {arm: round(statistics.median(s), 4) for arm, s in seconds.items()},
        "of_ceiling": round(statistics.median(ratios["ceiling"]), 3),
        "of_ceiling_range": [round(min(ratios["ceiling"]), 3), round(max(ratios["ceiling"]), 3)],
        **{f"times_{peer}": round(statistics.median(ratios[peer]), 2) for peer in ("padded", "trl") if peer in ratios},
    }  # fmt: skip


def head_memory(tokens: int = 1024, vocab: int = 151936, width: int = 64) -> dict[str, float]:
    """MiB at the peak of a head's passes without its gradients, naive and in tiles."""
    hidden, weight = torch.randn(tokens, width).requires_grad_(), torch.randn(vocab, width).requires_grad_()
    targets = torch.randint(vocab, (tokens,))

    def naive() -> torch.Tensor:
        return (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])

    def status(key: str) -> float:
        (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(key)]
        return int(line.split()[1]) / 1024

    peaks = {}
    for name, score in (("tiles", lambda: head_logprobs(hidden, weight, None, targets)[0]), ("naive", naive)):
        hidden.grad = weight.grad = None
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = status("VmRSS")
        score().sum().backward()
        peaks[name] = round(status("VmHWM") - before - 4 * (weight.numel() + hidden.numel()) / 2**20, 1)
    return peaks | {"frac": round(peaks["tiles"] / peaks["naive"], 4)}


def cpu_name() -> str:
    """The processor and the number of its cores, as the system tells them."""
    names = [row.split(":")[1].strip() for row in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in row]
    return f"{len(names)} x {names[0]}" if names else "a processor that does not tell its name"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="sigma 0.8 and prompts of half the tokens alone")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    memory = head_memory()  # first: what a process has freed it takes again without its peak rising
    print(json.dumps(memory), flush=True)
    cases = [(0.8, 0.5)] if args.quick else [(sigma, share) for sigma in SIGMAS for share in SHARES]
    rows = []
    for name in args.models:
        for sigma, share in cases if name != "smollm2_135m" else [(0.8, 0.5)]:  # whose padded steps take minutes
            rows.append(measure(name, sigma, share, args.repeats))
            print(json.dumps(rows[-1]), flush=True)
    report = {
        "machine": f"one thread of {cpu_name()}", "torch": torch.__version__, "repeats": args.repeats,
        "head_mib": memory, "rows": rows, "worst_of_ceiling": min(row["of_ceiling"] for row in rows),
    }  # fmt: skip
    print(json.dumps({key: value for key, value in report.items() if key != "rows"}))
    assert math.isfinite(report["worst_of_ceiling"])
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
