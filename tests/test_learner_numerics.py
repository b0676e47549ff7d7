"""What bf16, checkpointing and accumulation do to a learner's numbers, on real DeepSpeed (gloo)."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from capo_ray.arrays import FloatArray
from capo_ray.config import TrainConfig
from capo_ray.config.loss import LossConfig
from capo_ray.config.sections import LearnerConfig
from capo_ray.learners import Learner, LearnerSpec, RewardLearner
from capo_ray.learners.backend import make_adam
from capo_ray.learners.microbatch import Microbatch, to_microbatch
from capo_ray.learners.pretrained import stored_dtype
from capo_ray.packing import build_batch
from capo_ray.types import Sample, VersionRun
from tests.learner_group import (
    FSDP,
    OFFLOADED,
    Weights,
    make_batch,
    make_samples,
    make_spec,
    run_ranks,
    save,
    trained,
)
from tests.reward_group import make_reward_spec

CPU = torch.device("cpu")


def cell() -> Microbatch:
    return to_microbatch(make_batch(1).column(0)[0], CPU)


def small_cell() -> Microbatch:
    """Of one response: where it is computed again and again."""
    batch = build_batch(make_samples(1, 1), num_ranks=1, microbatch_tokens=4096, aggregation="token_mean")
    return to_microbatch(batch.column(0)[0], CPU)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of the tensors that autograd keeps of a forward pass; one storage counts once."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def alone(model: Path, dtype: str = "float32", **changes: Any) -> LearnerSpec:
    """A spec of plain torch."""
    spec = make_spec(model, dtype=dtype)
    return dataclasses.replace(spec, learner=spec.learner.model_copy(update={"backend": "torch"} | changes))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_torch_keeps_the_promises_of_a_backend(model: Path, tmp_path: Path, dtype: str) -> None:
    learner = Learner(alone(model, dtype))
    try:
        for seed in (1, 2):
            learner.update(make_batch(seed, budget=200).column(0))
        weights = learner.named_tensors()
        save(learner, tmp_path)
        shard = learner._backend.shard()
        kept = {name: tensor.clone() for name, tensor in shard.items()}
        after = learner.update(make_batch(3).column(0)).metrics
        assert all(torch.equal(shard[name], kept[name]) for name in kept), "what is to be written is a copy"
        learner.load(str(tmp_path))
        assert learner.update(make_batch(3).column(0)).metrics == after
        assert all(v.dtype == torch.float32 for k, v in learner._backend.shard().items() if "master" in k)
        poisoned = learner._backend.forward(cell().inputs, 1.0)[0].sum() * math.nan
        before = learner.named_tensors()
        learner._backend.backward(poisoned)
        assert not math.isfinite(learner._backend.move(1e-3))
        untouched = learner.named_tensors()
    finally:
        learner.close()
    assert weights and before and untouched
    assert all(torch.equal(before[k], untouched[k]) for k in before)
    if dtype == "bfloat16":
        direction, length = cosine(weights, trained(alone(model), 200)[0], start_of(model))
        assert direction > 0.9 and length == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_shared_prompts_make_the_move_of_padded_rows(model: Path) -> None:
    padded, before = trained(alone(model, packing="padded"), 200)
    for budget in (4096, 60):
        shared, metrics = trained(alone(model), budget)
        direction, length = cosine(shared, padded, start_of(model))
        assert direction > 1 - 1e-6 and length == pytest.approx(1.0, abs=1e-3)
        for name in ("learner/grad_norm", "loss/objective_mean", "loss/entropy_nats"):
            assert metrics[name] == pytest.approx(before[name], rel=1e-5), name
        # A small difference of log-probabilities of some nats, whose neighbours in float32 are 5e-7 apart.
        assert metrics["loss/kl_nats"] == pytest.approx(before["loss/kl_nats"], abs=5e-7)
        assert metrics["learner/padded_tokens"] < before["learner/padded_tokens"]


def spoilt(sample: Sample) -> Sample:
    """The sample with other numbers for the tokens of version 0."""
    old = sample.versions[0].end if sample.versions[0].version == 0 else 0

    def other(row: Sequence[float] | FloatArray) -> list[float]:
        return [x - 1.5 if i < old else x for i, x in enumerate(row)]

    logprobs, advantages = other(sample.sampler_logprobs), other(sample.advantages)
    rest = {n: other(getattr(sample, n)) for n in ("entropy_weights", "imitation_weights")}
    return dataclasses.replace(sample, sampler_logprobs=logprobs, advantages=advantages, **rest)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        {"kl_coef": 0.05},
        {"ratio": "sequence", "kl_coef": 0.0},
        {"behaviour": "recompute", "correction": "geometric_mask", "correction_low": 0.9, "correction_high": 1.2},
        {"entropy_control": "lica", "entropy_coef": 0.01, "covariance": "kl", "covariance_frac": 0.1},
    ],
)
def test_a_token_that_is_masked_has_no_part_in_a_move(model: Path, loss: dict[str, Any]) -> None:
    samples = []
    for i, sample in enumerate(make_samples(1)):
        length = sample.num_response_tokens
        runs = [(VersionRun(0, length),), (VersionRun(0, length // 2), VersionRun(1, length)), (VersionRun(1, length),)]
        samples.append(dataclasses.replace(sample, versions=runs[i % 3]))
    spec = dataclasses.replace(alone(model, num_epochs=1), loss=LossConfig.model_validate(loss))
    left = []
    for batch in (samples, list(map(spoilt, samples))):
        learner = Learner(spec)
        made = build_batch(
            batch, num_ranks=1, microbatch_tokens=200, aggregation="sequence_mean", oldest_version=1
        )  # two of three samples are in it
        left.append((learner.update(made.column(0)).metrics, learner.named_tensors()))
        learner.close()
    (metrics, weights), (others, same) = left
    packed = [w for cell in made.column(0) for w in cell]
    assert len(packed) == 8 and metrics["learner/loss_tokens"] == sum(
        sum(x != 0 for x in w.loss_weights) for w in packed
    )
    assert metrics == pytest.approx(others, rel=1e-6) and weights and same
    assert all(torch.allclose(weights[k], same[k], rtol=1e-6, atol=1e-9) for k in weights)


@pytest.mark.real
def test_plain_torch_makes_the_update_of_zero(model: Path) -> None:
    ours, metrics = trained(alone(model), 200)
    theirs, expected = trained(make_spec(model), 200)
    direction, length = cosine(ours, theirs, start_of(model))
    assert direction > 1 - 1e-5 and length == pytest.approx(1.0, abs=1e-3)
    assert metrics["learner/grad_norm"] == pytest.approx(expected["learner/grad_norm"], rel=1e-5)


@pytest.mark.real
def test_the_learner_trains_without_ray_vllm_and_deepspeed(model: Path) -> None:
    program = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        gone = name.split(".")[0] in ("ray", "vllm", "deepspeed")
        return None if gone else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
from pathlib import Path
from tests.test_learner_numerics import Learner, alone, make_batch
learner = Learner(alone(Path({str(model)!r})))
assert learner.update(make_batch(1).column(0)).moved
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.real
@pytest.mark.parametrize("kind", [*({"zero_stage": s} for s in range(4)), {"backend": "torch"}, {"backend": "fsdp"}])
def test_checkpointing_keeps_less_for_the_backward_pass_and_changes_no_gradient(
    model: Path, kind: dict[str, Any]
) -> None:
    kept, norms = {}, {}
    for checkpointing in (False, True):
        config = LearnerConfig(**kind, gradient_checkpointing=checkpointing)
        learner = Learner(make_spec(model, learner=config, loss=LossConfig(kl_coef=0.0)))
        try:
            inputs, backend = cell().inputs, learner._backend
            module = backend._module if "backend" in kind else backend._engine.module
            weights = sum(p.numel() * 4 for p in module.parameters())
            kept[checkpointing] = saved_bytes(lambda b=backend, i=inputs: b.forward(i, 1.0)) - weights  # type: ignore[misc]
            backend.backward(backend.forward(inputs, 1.0)[0].sum())
            norms[checkpointing] = backend.move(0.0)
        finally:
            learner.close()
    assert kept[True] < 0.5 * kept[False], kept
    assert norms[True] == pytest.approx(norms[False], rel=1e-6)


@pytest.mark.real
@pytest.mark.parametrize("method", ["qrm"])
def test_checkpointing_keeps_less_of_a_reward_model_too(model: Path, method: str) -> None:
    kept = {}
    for checkpointing in (False, True):
        config = LearnerConfig(zero_stage=2, gradient_checkpointing=checkpointing)
        learner = RewardLearner(dataclasses.replace(make_reward_spec(model, method), learner=config))
        try:
            inputs, backend = cell().inputs, learner._backend
            kept[checkpointing] = saved_bytes(lambda b=backend, i=inputs: b.forward(i, 1.0))  # type: ignore[misc]
        finally:
            learner.close()
    assert kept[True] < 0.6 * kept[False], kept


@pytest.mark.real
@pytest.mark.parametrize("stage", [1, 2, 3, FSDP, *OFFLOADED])
def test_a_loss_cut_into_many_microbatches_has_the_same_gradient_norm_in_bf16(model: Path, stage: int) -> None:
    learner = Learner(make_spec(model, stage, dtype="bfloat16", loss=LossConfig(kl_coef=0.0)))
    try:
        inputs, backend, norms = small_cell().inputs, learner._backend, []
        for parts in (1, 16, 64):
            for _ in range(parts):
                backend.backward(backend.forward(inputs, 1.0)[0].sum() / parts)
            norms.append(backend.move(0.0))
    finally:
        learner.close()
    assert norms[0] > 1
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


def cosine(ours: Weights, theirs: Weights, start: Weights) -> tuple[float, float]:
    """How two sets of moved weights agree: the cosine of the moves, and the ratio of their lengths."""
    a = torch.cat([(ours[k].float() - start[k].float()).flatten() for k in sorted(start)])
    b = torch.cat([(theirs[k].float() - start[k].float()).flatten() for k in sorted(start)])
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0)), float(a.norm() / b.norm())


def start_of(model: Path) -> Weights:
    from capo_ray.learners.policy import load_policy

    return {k.removeprefix("model."): v.detach() for k, v in load_policy(str(model), "float32").named_parameters()}


@pytest.mark.real
def test_bf16_learners_move_as_the_fp32_learner_does(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    exact, exact_metrics = trained(make_spec(model))
    start = start_of(model)
    run_ranks("bf16", model, tmp_path, 1, 2, 3, FSDP)
    for stage in (1, 2, 3, FSDP):
        alone, metrics = trained(make_spec(model, stage, dtype="bfloat16"))
        for weights in (alone, load_file(tmp_path / f"bf16_{stage}.safetensors")):
            assert {w.dtype for w in weights.values()} == {torch.bfloat16}
            direction, length = cosine(weights, exact, start)
            assert direction > 0.9 and length == pytest.approx(1.0, abs=0.1)
        for name in ("learner/grad_norm", "loss/entropy_nats", "loss/kl_nats"):
            assert metrics[name] == pytest.approx(exact_metrics[name], rel=0.05), name


@pytest.mark.real
@pytest.mark.parametrize("stage", [1, 2, 3, FSDP])
def test_moves_below_bf16s_resolution_add_up(model: Path, stage: int) -> None:
    """Weights of some 0.06 are 2.4e-4 apart in bf16: a move of 1e-5 alone would be lost, twenty are not."""
    spec = make_spec(model, stage, dtype="bfloat16", loss=LossConfig(kl_coef=0.0))
    update = {"num_epochs": 1, "lr": 1e-5, "schedule": "constant", "weight_decay": 0.0}
    spec = dataclasses.replace(spec, learner=spec.learner.model_copy(update=update))
    learner = Learner(spec)
    try:
        before = {k: v.clone() for k, v in learner._backend.shard().items() if k.startswith("master")}
        for _ in range(20):
            learner.update(make_batch(1).column(0))
        after = learner._backend.shard()
    finally:
        learner.close()
    assert all(master.dtype == torch.float32 for master in before.values())
    moved = torch.cat([(after[k] - before[k]).abs().flatten() for k in before])
    # Adam's moves are about lr each; the same batch pushes most weights one way.
    assert float(moved.quantile(0.5)) > 5 * 1e-5 and float(moved.max()) < 21 * 1e-5


def test_a_cpus_moves_are_fused_and_those_of_torchs_loop_over_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.linspace(-1, 1, 999).requires_grad_() for _ in range(2))
    fused = make_adam([ours], CPU, (0.9, 0.95), 0.01)
    loop = torch.optim.AdamW([theirs], lr=0.0, betas=(0.9, 0.95), weight_decay=0.01, foreach=False)
    assert fused.defaults["fused"]
    for lr in (1e-2, 3e-2, 1e-3):
        ours.grad = torch.randn(999)
        theirs.grad = ours.grad.clone()
        for adam in (fused, loop):
            adam.param_groups[0]["lr"] = lr
            adam.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_plain_torch_is_refused_on_two_ranks() -> None:
    with pytest.raises(ValueError, match=r"learner.backend=torch trains on one rank"):
        TrainConfig.model_validate({"learner": {"backend": "torch", "num_ranks": 2}})


def test_bf16_on_a_gpu_without_it_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    from capo_ray.protocols import RunFailed

    with pytest.raises(RunFailed, match=r"bfloat16 needs a GPU .*Tesla T4"):
        Learner(make_spec("no/model/is/looked/for", dtype="bfloat16", device="cuda"))


def test_running_out_of_memory_is_one_sentence_with_what_would_need_less(monkeypatch: pytest.MonkeyPatch) -> None:
    from capo_ray.learners import rank
    from capo_ray.protocols import RunFailed

    spec = make_spec("m")
    with (
        pytest.raises(RunFailed, match=r"ran out of memory while training.*gradient_checkpointing=true"),
        rank.memory_told(spec, "training on a batch"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
    with pytest.raises(RunFailed, match="ran out of memory"), rank.memory_told(spec, "building"):
        torch.empty(1 << 50, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shapes"), rank.memory_told(spec, "building"):
        raise RuntimeError("shapes differ")


def test_the_stored_dtype_is_read_from_the_files_and_none_where_they_differ(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text("{}")
    assert stored_dtype(str(tmp_path)) is None
    save_file(
        {"a": torch.zeros(2, dtype=torch.bfloat16), "n": torch.zeros(2, dtype=torch.int64)},
        tmp_path / "model.safetensors",
    )
    assert stored_dtype(str(tmp_path)) == torch.bfloat16
    save_file({"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert stored_dtype(str(tmp_path)) is None


@pytest.mark.real
def test_both_ranks_skip_a_move_that_one_of_them_spoils(model: Path, tmp_path: Path) -> None:
    """Where some cells have entropy weights and others none: in ZeRO-3 these two once waited for each other."""
    run_ranks("skip", model, tmp_path, 0, 1, 2, 3, FSDP)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_reads_all_that_it_is_told_for_gpus(stage: int) -> None:
    """By DeepSpeed's own reader: a key that it does not know would change nothing, without a word."""
    from deepspeed.runtime.config import DeepSpeedConfig

    from capo_ray.learners import zero

    read: Any = DeepSpeedConfig(zero._config(stage, "bfloat16", 0.5, 10**10, 10**10, "cuda", offload=stage == 3))
    partition = read.zero_config
    assert (partition.offload_optimizer is not None) is (stage == 3) and read.zero_force_ds_cpu_optimizer is False
    assert partition.overlap_comm is (stage >= 2), "gathers and sums run on streams of their own"
    assert partition.reduce_bucket_size == partition.allgather_bucket_size == zero.BUCKET_NUMEL
    assert read.communication_data_type == torch.float32 and read.grad_accum_dtype == "fp32"
    assert read.gradient_clipping == 0.5 and read.managed_gradient_accumulation is False
    assert read.bfloat16_config.enabled and read.bfloat16_config.immediate_grad_update is (stage == 1)
    if stage == 3:
        assert (partition.offload_optimizer.device, partition.offload_optimizer.pin_memory) == ("cpu", True)
        assert partition.prefetch_bucket_size == zero.BUCKET_NUMEL
        assert partition.max_live_parameters == 4 * zero.BUCKET_NUMEL
        assert partition.param_persistence_threshold == 10_000
