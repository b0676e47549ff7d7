"""A small learner group for tests: its batches, its spec, and what two real ranks do together (see `rank_pair`)."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from capo_ray.config.lora import LoraConfig
from capo_ray.config.loss import LossConfig
from capo_ray.config.sections import LearnerConfig
from capo_ray.learners import Learner, LearnerSpec, RewardLearner, meeting, zero
from capo_ray.learners import rank as rank_of_group
from capo_ray.learners.backend import Backend
from capo_ray.learners.policy import Policy, load_policy
from capo_ray.learners.reference import Reference
from capo_ray.packing import build_batch
from capo_ray.types import Batch, Sample, TrajectoryKey, VersionRun, WrittenFile
from tests.rank_pair import run_pair

VOCAB = 64
COVARIANCE = ("clip", "kl")
FSDP = 4
"""In place of a ZeRO stage: FSDP2."""
FSDP_OFFLOADED = 6
OFFLOADED = {5: 3, FSDP_OFFLOADED: FSDP}
"""In place of one: its states in host memory."""
NUM_KINDS = 7
Weights = dict[str, torch.Tensor]


def make_samples(seed: int, n: int = 12) -> list[Sample]:
    """Siblings in groups of four, with one prompt a group."""
    rng = random.Random(seed)
    samples: list[Sample] = []
    for i in range(n):
        response = rng.randint(3, 30)
        if i % 4 == 0:
            prompt = tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(2, 10)))
        samples.append(
            Sample(
                key=TrajectoryKey("p", i // 4, i % 4),
                token_ids=prompt + tuple(rng.randrange(3, VOCAB) for _ in range(response)),
                sampler_logprobs=tuple(-4.2 + 0.1 * rng.gauss(0, 1) for _ in range(response)),
                advantages=tuple(rng.gauss(0, 1) for _ in range(response)),
                versions=(VersionRun(0, response),),
                entropy_weights=tuple(0.02 * rng.random() for _ in range(response)) if i % 3 == 0 else (),
                imitation_weights=(0.1,) * response if i % 4 == 1 else (),
            )
        )
    return samples


def make_batch(seed: int, *, num_ranks: int = 1, budget: int = 4096, packing: str = "shared") -> Batch:
    options = {"num_ranks": num_ranks, "microbatch_tokens": budget, "packing": packing}
    return build_batch(make_samples(seed), aggregation="sequence_mean", **options)  # type: ignore[arg-type]


def make_spec(model: str | Path, stage: int = 2, **changes: object) -> LearnerSpec:
    of = OFFLOADED.get(stage, stage)
    kind: dict[str, Any] = {"backend": "fsdp"} if of == FSDP else {"zero_stage": of}
    learner = LearnerConfig(**kind, offload_states=of != stage, num_epochs=2, lr=1e-3, weight_decay=0.01, deadline_s=60)
    spec = LearnerSpec(
        model_path=str(model),
        dtype="float32",
        learner=learner,
        loss=LossConfig(kl_coef=0.05),
        temperature=0.9,
        total_updates=10,
        device="cpu",
    )
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def kind_of(spec: LearnerSpec) -> int:
    """The ZeRO stage of a spec, or what stands in its place."""
    of = FSDP if spec.learner.backend == "fsdp" else spec.learner.zero_stage
    return next(kind for kind in OFFLOADED if OFFLOADED[kind] == of) if spec.learner.offload_states else of


def lora_spec(
    model: str | Path, lora_rank: int = 4, backend: str = "torch", stage: int = 2, **changes: Any
) -> LearnerSpec:
    """A spec that trains adapters of rank `lora_rank` on all linear layers, quickly."""
    spec = make_spec(model, stage, **changes)
    update = {"lora": LoraConfig(rank=lora_rank, alpha=8.0), "backend": backend, "lr": 1e-2}
    return dataclasses.replace(spec, learner=spec.learner.model_copy(update=update))


def covariance_spec(model: str | Path, kind: str, **changes: object) -> LearnerSpec:
    """A spec whose loss holds back a tenth of the tokens by their covariance, and has LICA's entropy term."""
    loss = LossConfig(
        kl_coef=0.0,
        entropy_control="lica",
        entropy_coef=0.01,
        covariance=kind,  # type: ignore[arg-type]
        covariance_frac=0.1,
        covariance_low=0.01,
        covariance_high=0.3,
    )
    return make_spec(model, 0, loss=loss, **changes)


def train(learner: Learner, num_ranks: int, rank: int, budget: int = 4096) -> dict[str, float]:
    """The metrics of the second of two updates."""
    packing = learner.spec.learner.packing
    first, second = (make_batch(s, num_ranks=num_ranks, budget=budget, packing=packing).column(rank) for s in (1, 2))
    learner.update(first)
    return learner.update(second).metrics


def save(learner: Learner | RewardLearner, path: Path) -> tuple[WrittenFile, ...]:
    """The files of this rank's checkpoint, written at once."""
    path.mkdir(parents=True, exist_ok=True)
    return learner.snapshot().save(str(path))


def export(learner: Learner, path: Path) -> tuple[WrittenFile, ...]:
    """The files of the policy."""
    path.mkdir(parents=True, exist_ok=True)
    return learner.snapshot().export(str(path))


def run_rank(rank: int, world: int, meetings: Sequence[str], model: str, out: Path) -> None:
    """Trains with each ZeRO stage in turn; rank 0 leaves the weights and metrics of each, also those after a resume."""
    from safetensors.torch import save_file

    for stage in range(NUM_KINDS):
        spec = make_spec(model, stage, rank=rank, world_size=world, init_method=meetings[stage])
        learner = Learner(spec)
        metrics = train(learner, world, rank, budget=200)
        weights = learner.named_tensors()
        save(learner, out / f"checkpoint{stage}")
        column = make_batch(3, num_ranks=world).column(rank)
        learner.update(column)
        after = learner.named_tensors()
        learner.update(column)  # straight before the load: nothing that was kept whole may stay behind
        learner.load(str(out / f"checkpoint{stage}"))
        learner.update(column)
        again = learner.named_tensors()
        learner.refresh_reference()
        metrics["kl_after_refresh"] = learner.update(column).metrics["loss/kl_nats"]
        learner.close()
        assert (weights is None) == (rank != 0)
        if weights is not None and after is not None and again is not None:
            save_file(weights, out / f"trained{stage}.safetensors")
            save_file(after, out / f"after{stage}.safetensors")
            save_file(again, out / f"again{stage}.safetensors")
            (out / f"metrics{stage}.json").write_text(json.dumps(metrics))
    for point, kind in zip(meetings[NUM_KINDS:], COVARIANCE, strict=True):
        learner = Learner(covariance_spec(model, kind, rank=rank, world_size=world, init_method=point))
        metrics = train(learner, world, rank, budget=200)
        weights = learner.named_tensors()
        learner.close()
        if weights is not None:
            save_file(weights, out / f"trained_{kind}.safetensors")
            (out / f"metrics_{kind}.json").write_text(json.dumps(metrics))


def skip_one(spec: LearnerSpec, out: Path) -> None:
    """Asserts that both ranks skip an update whose loss is NaN on one, that no weight moves, and that they go on."""
    world, rank = spec.world_size, spec.rank
    learner = Learner(spec)
    learner.update(make_batch(1, num_ranks=world).column(rank))
    samples = make_samples(5)
    samples[3] = dataclasses.replace(samples[3], advantages=(math.nan,) * samples[3].num_response_tokens)
    batch = build_batch(samples, num_ranks=world, microbatch_tokens=100, aggregation="token_mean")
    mine = {weighted.sample.key for cell in batch.column(rank) for weighted in cell}
    before = learner.named_tensors()
    report = learner.update(batch.column(rank))
    after = learner.named_tensors()
    assert report.skipped and not report.moved
    assert report.nonfinite == ((samples[3].key,) if samples[3].key in mine else ())
    if before is not None and after is not None:
        assert all(torch.equal(before[k], after[k]) for k in before)
    assert learner.update(make_batch(2, num_ranks=world).column(rank)).moved
    learner.close()


def refresh_and_resume(spec: LearnerSpec, out: Path) -> None:
    """Asserts that a refreshed reference, kept in parts, is the same after a load, also from the first model."""
    learner = Learner(spec)
    column = make_batch(3, num_ranks=spec.world_size).column(spec.rank)
    first, refreshed = (out / f"{name}{kind_of(spec)}" for name in ("first", "refreshed"))
    save(learner, first)
    learner.update(column)
    learner.refresh_reference()
    save(learner, refreshed)
    seen = [learner.update(column).metrics["loss/kl_nats"] for _ in range(2)]
    learner.load(str(first))
    learner.load(str(refreshed))
    assert [learner.update(column).metrics["loss/kl_nats"] for _ in range(2)] == seen
    assert abs(seen[0]) < 1e-7 < seen[1]
    learner.close()


def train_in_bf16(spec: LearnerSpec, out: Path) -> None:
    """Rank 0 leaves its weights after two updates with checkpointing."""
    from safetensors.torch import save_file

    checkpointing = spec.learner.model_copy(update={"gradient_checkpointing": True})
    learner = Learner(dataclasses.replace(spec, dtype="bfloat16", learner=checkpointing))
    train(learner, spec.world_size, spec.rank, budget=200)
    weights = learner.named_tensors()
    learner.close()
    if weights is not None:
        save_file(weights, out / f"bf16_{kind_of(spec)}.safetensors")


def train_adapters(spec: LearnerSpec, out: Path) -> None:
    """Rank 0 leaves its weights after two updates of adapters, and asserts that a resume goes on as if nothing were."""
    from safetensors.torch import save_file

    world, rank = spec.world_size, spec.rank
    stage = kind_of(spec)
    meets = {"world_size": world, "rank": rank, "init_method": spec.init_method}
    learner = Learner(lora_spec(spec.model_path, backend=spec.learner.backend, stage=stage, **meets))
    metrics = train(learner, world, rank, budget=200)
    weights = learner.named_tensors()
    save(learner, out / f"lora_checkpoint{stage}")
    column = make_batch(3, num_ranks=world).column(rank)
    learner.refresh_reference()
    learner.update(column)
    after = learner.named_tensors()
    learner.load(str(out / f"lora_checkpoint{stage}"))
    learner.refresh_reference()
    learner.update(column)
    again = learner.named_tensors()
    learner.close()
    if weights is not None and after is not None and again is not None:
        assert all(torch.equal(after[name], again[name]) for name in after)
        save_file(weights, out / f"lora{stage}.safetensors")
        (out / f"lora{stage}.json").write_text(json.dumps(metrics))


def train_in_stretches(spec: LearnerSpec, out: Path) -> None:
    """Rank 0 leaves its weights and metrics after two updates in which both ranks compute each cell together."""
    from safetensors.torch import save_file

    changes = {"num_ranks": 2, "sequence_parallel": 2, "gradient_checkpointing": kind_of(spec) != 0}
    if kind_of(spec) == 0:  # a term that joins the tokens of a response, and one that joins those of the batch
        spec = dataclasses.replace(covariance_spec(spec.model_path, "kl"), **ranks_of(spec))
        spec = dataclasses.replace(spec, loss=spec.loss.model_copy(update={"ratio": "sequence"}))
    learner = Learner(dataclasses.replace(spec, learner=spec.learner.model_copy(update=changes)))
    metrics = train(learner, 1, 0, budget=60)
    scores = learner.logprobs([[3, 4, 5, 6]], [1])
    weights = learner.named_tensors()
    learner.close()
    if weights is not None:
        save_file(weights, out / f"stretches{kind_of(spec)}.safetensors")
        (out / f"stretches{kind_of(spec)}.json").write_text(json.dumps(metrics | {"score": sum(scores[0])}))


def ranks_of(spec: LearnerSpec) -> dict[str, Any]:
    """Who a rank is, and where it meets the others."""
    return {"rank": spec.rank, "world_size": spec.world_size, "init_method": spec.init_method}


def go_on_from_one(spec: LearnerSpec, out: Path) -> None:
    """Rank 0 leaves its weights as one rank's checkpoint `one` holds them, and after an update from there."""
    from safetensors.torch import save_file

    learner = Learner(spec)
    learner.load(str(out / "one"))
    loaded = learner.named_tensors()
    learner.update(make_batch(3, num_ranks=spec.world_size).column(spec.rank))
    after = learner.named_tensors()
    learner.close()
    if loaded is not None and after is not None:
        save_file(loaded, out / f"loaded{kind_of(spec)}.safetensors")
        save_file(after, out / f"grown{kind_of(spec)}.safetensors")


def measure_memory(spec: LearnerSpec, out: Path) -> None:
    """Each rank leaves the most anonymous memory (bytes) that it held while both models were loaded and dealt."""
    deal, leave = (deal_by_fsdp if kind_of(spec) == FSDP else deal_by_zero3)(spec)
    peak, done, before = [0], threading.Event(), anonymous_bytes()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous_bytes() - before)
            done.wait(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    policy = load_policy(spec.model_path, spec.dtype, **rank_of_group.load_options(spec))  # kept beside the reference
    held = deal(policy)
    reference = Reference(spec.model_path, spec, torch.device("cpu"))
    done.set()
    watcher.join()
    held += sum(part.numel() * 4 for part in reference._parts().values())
    leave()
    (out / f"memory{kind_of(spec)}_{spec.rank}.json").write_text(json.dumps({"peak": peak[0], "held": held}))


Dealing = tuple[Callable[[Policy], int], Callable[[], None]]


def deal_by_zero3(spec: LearnerSpec) -> Dealing:
    """How a model is dealt to the ranks, which gives the bytes of this one's part, and how the group is left."""
    deepspeed = zero._import_deepspeed("cpu", spec.rank, spec.world_size)
    meeting.join("cpu", spec.rank, spec.world_size, spec.init_method, 60)
    zero._tell(deepspeed, "cpu", 60)

    def deal(policy: Policy) -> int:
        numel = sum(p.numel() for p in policy.parameters())
        config = zero._config(3, spec.dtype, 1.0, numel, numel, "cpu")
        zero._partition(deepspeed, policy, config, torch.device("cpu"), torch.float32)
        return sum(p.ds_tensor.numel() * 4 for p in policy.parameters())

    return deal, lambda: zero._leave(deepspeed)


def deal_by_fsdp(spec: LearnerSpec) -> Dealing:
    """As `deal_by_zero3`."""
    import capo_ray.learners.fsdp  # noqa: F401  # its own memory is none of the model's

    made: list[Backend] = []

    def deal(policy: Policy) -> int:
        made.append(rank_of_group.build_backend(policy, spec, "cpu"))
        return sum(4 * master.numel() for master in made[0]._masters.values())  # type: ignore[attr-defined]

    return deal, lambda: made[0].close()


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


TASKS: dict[str, Callable[[LearnerSpec, Path], None]] = {
    "bf16": train_in_bf16,
    "grow": go_on_from_one,
    "lora": train_adapters,
    "memory": measure_memory,
    "refresh": refresh_and_resume,
    "skip": skip_one,
    "stretches": train_in_stretches,
}


def run_ranks(task: str, model: Path, out: Path, *stages: int) -> None:
    """Two processes that do a task of TASKS together, once in each stage; their files are in `out`."""
    run_pair(partial(run_task, task, stages), len(stages), model, out)


def run_all_stages(model: Path, out: Path) -> None:
    """Two processes that train together as `run_rank` says; their files are in `out`."""
    run_pair(run_rank, NUM_KINDS + len(COVARIANCE), model, out)


def trained(spec: LearnerSpec, budget: int = 4096) -> tuple[Weights, dict[str, float]]:
    learner = Learner(spec)
    try:
        metrics = train(learner, 1, 0, budget)
        weights = learner.named_tensors()
    finally:
        learner.close()
    assert weights is not None
    return weights, metrics


def run_task(
    task: str, stages: Sequence[int], rank: int, world: int, meetings: Sequence[str], model: str, out: Path
) -> None:
    """One rank's part of a task of TASKS, in each stage."""
    for point, stage in zip(meetings, stages, strict=True):
        TASKS[task](make_spec(model, stage, rank=rank, world_size=world, init_method=point), out)
