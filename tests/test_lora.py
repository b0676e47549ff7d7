"""Adapters: what is trained, what is published and what is kept, on the real model in plain torch and in ZeRO."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from capo_ray.config.lora import LoraConfig
from capo_ray.config.loss import LossConfig
from capo_ray.learners import Learner
from capo_ray.learners.adapters import Adapters, is_adapter, targets_of
from capo_ray.learners.backend import home_of, portions
from capo_ray.learners.microbatch import to_microbatch
from capo_ray.learners.policy import Policy, load_policy
from capo_ray.protocols import RunFailed
from tests.learner_group import NUM_KINDS, Weights, export, lora_spec, make_batch, run_ranks, save, train

CPU = torch.device("cpu")


@pytest.fixture
def learner(model: Path) -> Iterator[Learner]:
    learner = Learner(lora_spec(model))
    yield learner
    learner.close()


def adapted(model: Path, *, spread: float = 0.3) -> tuple[Policy, Adapters]:
    """A policy whose adapters are no longer those of the beginning."""
    policy = load_policy(str(model), "float32", shared=True)
    adapters = Adapters(policy.model, LoraConfig(rank=4, alpha=8.0), str(model), 0)
    torch.manual_seed(1)
    for name, param in policy.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(param, std=spread)
    return policy, adapters


def objective(policy: Policy) -> torch.Tensor:
    cell = to_microbatch(make_batch(1).column(0)[0], CPU, shared=True)
    logprobs, entropies = policy(cell.inputs, 0.9)
    return (logprobs * cell.advantages).sum() + 0.1 * entropies.sum()


def merged_model(model: Path, policy: Policy, adapters: Adapters) -> Policy:
    """The model itself with the weights that would be published."""
    plain = load_policy(str(model), "float32", shared=True)
    weights = adapters.merge({name: param.detach() for name, param in policy.named_parameters()})
    assert weights.keys() == dict(plain.named_parameters()).keys()
    with torch.no_grad():
        for name, param in plain.named_parameters():
            param.copy_(weights[name])
    return plain


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_and_b_are_those_of_the_product_by_hand(model: Path, checkpointing: bool) -> None:
    """W' = W + s B A, so dA = s B^T dW' and dB = s dW' A^T; s = 8 / 4."""
    policy, adapters = adapted(model)
    whole = merged_model(model, policy, adapters)
    if checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    objective(policy).backward()
    objective(whole).backward()
    weights, slopes = dict(policy.named_parameters()), dict(whole.named_parameters())
    seen = 0
    for name, param in weights.items():
        assert (param.grad is not None) == is_adapter(name) == param.requires_grad, name
        if not is_adapter(name):
            continue
        home, slope = home_of(name), slopes[f"{home_of(name)}.weight"].grad
        assert slope is not None and param.grad is not None
        first, second = (weights[f"{home}.lora_{side}.default.weight"].detach() for side in "AB")
        expected = 2.0 * second.T @ slope if ".lora_A." in name else 2.0 * slope @ first.T
        assert torch.allclose(param.grad, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), name
        seen += 1
    assert seen == 2 * 7 * policy.model.config.num_hidden_layers


def test_merged_weights_give_the_logprobs_of_the_adapters(model: Path) -> None:
    policy, adapters = adapted(model)
    cell = to_microbatch(make_batch(1).column(0)[0], CPU, shared=True)
    with torch.no_grad():
        beside, _ = policy(cell.inputs, 0.9)
        merged, _ = merged_model(model, policy, adapters)(cell.inputs, 0.9)
        with adapters.as_reference():
            base, _ = policy(cell.inputs, 0.9)
        first, _ = load_policy(str(model), "float32", shared=True)(cell.inputs, 0.9)
    assert float((beside - merged).abs().max()) < 1e-5
    assert torch.equal(base, first) and float((beside - base).abs().max()) > 0.1


def test_before_training_what_is_published_is_what_the_files_hold(learner: Learner) -> None:
    learner.require_files_weights()


def test_updates_move_the_adapters_and_nothing_else(model: Path, learner: Learner) -> None:
    policy: Any = learner._backend._module  # type: ignore[attr-defined]
    before = {name: param.detach().clone() for name, param in policy.named_parameters()}
    train(learner, 1, 0)
    for name, param in policy.named_parameters():
        assert torch.equal(param, before[name]) != is_adapter(name), name
    assert len(learner._backend.shard()) == 4 * 2 * 7 * policy.model.config.num_hidden_layers  # master and Adam's three


def test_the_reference_is_the_base_and_after_a_refresh_the_policy_of_that_moment(
    model: Path, tmp_path: Path, learner: Learner
) -> None:
    """KL from the base is measured as from a second copy of it, without one."""
    column = make_batch(3).column(0)
    train(learner, 1, 0)
    cell = to_microbatch(column[0], CPU, shared=True)
    assert learner._reference is not None
    with torch.no_grad():
        expected, _ = load_policy(str(model), "float32", shared=True)(cell.inputs, 0.9)
    assert torch.equal(learner._reference.logprobs(cell, 0.9), expected)
    save(learner, tmp_path / "before")
    learner.refresh_reference()
    save(learner, tmp_path / "after")
    seen = [learner.update(column).metrics["loss/kl_nats"] for _ in range(2)]
    assert seen[0] == pytest.approx(0.0, abs=1e-7) and seen[1] > 1e-6
    learner.load(str(tmp_path / "before"))
    assert learner.update(column).metrics["loss/kl_nats"] > 1e-6
    learner.load(str(tmp_path / "after"))
    assert [learner.update(column).metrics["loss/kl_nats"] for _ in range(2)] == seen


def test_a_checkpoint_holds_the_adapters_alone_and_a_fresh_learner_goes_on_from_it(
    model: Path, tmp_path: Path, learner: Learner
) -> None:
    train(learner, 1, 0)
    save(learner, tmp_path)
    column = make_batch(3).column(0)
    report, weights = learner.update(column), learner.named_tensors()
    names = {path.name for path in tmp_path.iterdir()}
    assert {path.rsplit(".", 1)[1] for path in names} == {"safetensors", "json"}
    fresh = Learner(dataclasses.replace(lora_spec(model), seed=9))
    try:
        assert fresh.load(str(tmp_path)) == 2
        again, reloaded = fresh.update(column), fresh.named_tensors()
    finally:
        fresh.close()
    assert again.metrics == report.metrics
    assert weights is not None and reloaded is not None
    assert all(torch.equal(weights[name], reloaded[name]) for name in weights)
    other = lora_spec(model, lora_rank=2)
    fresh = Learner(other)
    try:
        with pytest.raises(RunFailed, match="saved with lora="):
            fresh.load(str(tmp_path))
    finally:
        fresh.close()


def test_an_export_is_the_merged_model_and_peft_reads_the_adapters_beside_it(
    model: Path, tmp_path: Path, learner: Learner
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    train(learner, 1, 0)
    export(learner, tmp_path / "policy")
    save(learner, tmp_path / "learner")
    only = tmp_path / "adapter"
    only.mkdir()
    (tmp_path / "learner" / "adapter_model.safetensors").rename(only / "adapter_model.safetensors")
    (tmp_path / "learner" / "adapter_model.json").rename(only / "adapter_config.json")
    ids = torch.tensor([list(range(3, 23))])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")(ids).logits
        base = AutoModelForCausalLM.from_pretrained(model)
        first = base(ids).logits
        beside = PeftModel.from_pretrained(base, str(only))(ids).logits
    assert float((merged - beside).abs().max()) < 1e-4 < float((merged - first).abs().max())
    assert json.loads((only / "adapter_config.json").read_text())["r"] == 4


def test_portions_never_part_a_layer_from_its_adapter(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, adapters = adapted(model)
    monkeypatch.setattr("capo_ray.learners.backend.PORTION_NUMEL", 1)
    parts = list(portions(policy))
    assert len(parts) > 20
    merged = [name for part in parts for name in adapters.merge({n: p.detach() for n, p in part.items()})]
    assert merged == list(dict(load_policy(str(model), "float32").named_parameters()))


def test_targets_that_do_not_exist_are_refused_with_those_that_do() -> None:
    names = [
        "lm_head",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.mlp.experts.0.x",
    ]
    assert targets_of(names, (), "m") == ("q_proj", "up_proj")
    assert targets_of(names, ("q_proj",), "m") == ("q_proj",)
    with pytest.raises(RunFailed, match=r"of m \(got lm_head, x\); it has q_proj, up_proj"):
        targets_of(names, ("q_proj", "lm_head", "x"), "m")
    with pytest.raises(RunFailed, match="got a model without any"):
        targets_of(["lm_head"], (), "m")


def test_adapters_in_bf16_have_masters_in_fp32_and_a_base_that_is_not_written(model: Path) -> None:
    learner = Learner(dataclasses.replace(lora_spec(model), dtype="bfloat16", loss=LossConfig(kl_coef=0.0)))
    try:
        policy: Any = learner._backend._module  # type: ignore[attr-defined]
        assert {param.dtype for param in policy.parameters()} == {torch.bfloat16}
        before = {name: param.detach().clone() for name, param in policy.named_parameters()}
        train(learner, 1, 0)
        assert all(torch.equal(param, before[name]) != is_adapter(name) for name, param in policy.named_parameters())
        masters = [tensor for name, tensor in learner._backend.shard().items() if name.startswith("master.")]
        assert {tensor.dtype for tensor in masters} == {torch.float32}
    finally:
        learner.close()


@pytest.mark.real
def test_two_ranks_train_adapters_as_one_rank_of_torch_does(model: Path, tmp_path: Path, learner: Learner) -> None:
    from safetensors.torch import load_file

    run_ranks("lora", model, tmp_path, *range(NUM_KINDS))
    metrics, weights = train(learner, 1, 0), learner.named_tensors()
    assert weights is not None
    for stage in range(NUM_KINDS):
        assert_close(load_file(tmp_path / f"lora{stage}.safetensors"), weights)
        theirs = json.loads((tmp_path / f"lora{stage}.json").read_text())
        for name in ("learner/grad_norm", "loss/objective_mean", "loss/kl_nats"):
            assert theirs[name] == pytest.approx(metrics[name], rel=1e-4), (stage, name)


def assert_close(ours: Weights, theirs: Weights) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert float((ours[name] - tensor).abs().max()) <= 1e-5 * max(1.0, float(tensor.abs().max())), name
