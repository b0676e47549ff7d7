"""What checkpointing and bf16 sums do to a learner's numbers and memory, on real DeepSpeed (gloo)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from capo_ray.config.loss import LossConfig
from capo_ray.config.sections import LearnerConfig
from capo_ray.learners import Learner, RewardLearner
from capo_ray.learners.microbatch import Microbatch, to_microbatch
from tests.learner_group import VOCAB, make_batch, make_spec
from tests.reward_group import make_reward_spec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from capo_ray.engines.tiny import write_tiny_model

    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path, vocab=[chr(0x100 + i) for i in range(VOCAB - 3)], init_scale=3.0)
    return path


def cell() -> Microbatch:
    return to_microbatch(make_batch(1).column(0)[0], CPU)


def saved_bytes(forward: Callable[[], object]) -> int:
    """Bytes of the tensors that autograd keeps of a forward pass; one storage counts once."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(kept.values())


@pytest.mark.real
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_checkpointing_keeps_less_for_the_backward_pass_and_changes_no_gradient(model: Path, stage: int) -> None:
    kept, norms = {}, {}
    for checkpointing in (False, True):
        config = LearnerConfig(zero_stage=stage, gradient_checkpointing=checkpointing)  # type: ignore[arg-type]
        learner = Learner(make_spec(model, learner=config, loss=LossConfig(kl_coef=0.0)))
        try:
            inputs, backend = cell().inputs, learner._backend
            weights = sum(p.numel() * 4 for p in backend._engine.module.parameters())
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
@pytest.mark.parametrize("stage", [2, 3])
def test_a_loss_cut_into_many_microbatches_has_the_same_gradient_norm_in_bf16(model: Path, stage: int) -> None:
    learner = Learner(make_spec(model, stage, dtype="bfloat16", loss=LossConfig(kl_coef=0.0)))
    try:
        inputs, backend, norms = cell().inputs, learner._backend, []
        for parts in (1, 16, 64):
            for _ in range(parts):
                backend.backward(backend.forward(inputs, 1.0)[0].sum() / parts)
            norms.append(backend.move(0.0))
    finally:
        learner.close()
    assert norms[0] > 1
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)
