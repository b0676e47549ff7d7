"""Which bytes a learner's rank holds: its parts of the models, and no whole model in memory of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from capo_ray.config.loss import LossConfig
from capo_ray.learners import Learner
from capo_ray.learners.microbatch import to_microbatch
from capo_ray.learners.policy import load_policy
from capo_ray.learners.pretrained import DTYPES, place
from capo_ray.learners.reference import Reference
from capo_ray.learners.sharded import ShardedModule
from tests.learner_group import FSDP, FSDP_OFFLOADED, make_batch, make_spec, run_ranks, save

MIB = 1 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A model of some 100 MiB in bf16, in 40 layers of equal size, and its number of weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 128}
    config = Qwen3Config(
        vocab_size=1000, hidden_size=512, intermediate_size=128, num_hidden_layers=40, tie_word_embeddings=True, **sizes
    )
    path = tmp_path_factory.mktemp("large")
    policy = Qwen3ForCausalLM(config).to(torch.bfloat16)
    policy.save_pretrained(path)
    return path, sum(p.numel() for p in policy.parameters())


@pytest.mark.real
@pytest.mark.parametrize("kind", [3, FSDP])
def test_no_rank_ever_holds_a_whole_model_in_memory_of_its_own(
    large: tuple[Path, int], tmp_path: Path, kind: int
) -> None:
    """fp32 of a bf16 file, and the reference beside it: 4 N / 2 each, and little more at any time."""
    path, n = large
    run_ranks("memory", path, tmp_path, kind)
    for rank in range(2):
        memory = json.loads((tmp_path / f"memory{kind}_{rank}.json").read_text())
        assert memory["held"] == pytest.approx(2 * (4 * n / 2), rel=0.01), memory
        assert memory["held"] * 0.95 < memory["peak"] < memory["held"] * 1.25, memory


def test_weights_that_a_file_holds_in_the_right_dtype_stay_mapped_and_others_are_cast(
    model: Path, tmp_path: Path
) -> None:
    policy = load_policy(str(model), "bfloat16").model
    policy.save_pretrained(tmp_path)
    for dtype, mapped in (("bfloat16", True), ("float32", False)):
        module = load_policy(str(tmp_path), dtype, cast=False)
        before = {name: param.data_ptr() for name, param in module.named_parameters()}
        place(module, torch.device("cpu"), DTYPES[dtype])
        assert {p.dtype for p in module.parameters()} == {module.model.config.dtype} == {DTYPES[dtype]}
        assert all((p.data_ptr() == before[name]) == mapped for name, p in module.named_parameters())
        assert {b.dtype for b in module.buffers()} == {torch.float32}
        assert module.model.lm_head.weight is module.model.model.embed_tokens.weight


def test_a_shard_is_a_part_of_each_portion_and_a_host_shard_gives_the_same_numbers(model: Path) -> None:
    cell = to_microbatch(make_batch(1).column(0)[0], torch.device("cpu"))
    plain = load_policy(str(model), "float32").eval()
    total = sum(p.numel() for p in plain.parameters())
    options: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    alone = ShardedModule(load_policy(str(model), "float32").eval(), rank=0, num_ranks=1, on_host=True, **options)
    with torch.no_grad():
        assert torch.equal(alone(cell.inputs, 0.9)[0], plain(cell.inputs, 0.9)[0])
    assert sum(shard.numel() for shard in alone.shards().values()) == total
    parts = [
        ShardedModule(load_policy(str(model), "float32"), rank=r, num_ranks=3, on_host=False, **options).shards()
        for r in range(3)
    ]
    for name, whole in alone.shards().items():
        joined = torch.cat([part[name] for part in parts])
        assert torch.equal(joined[: whole.numel()], whole) and not joined[whole.numel() :].any()
        assert parts[0][name].numel() == -(-whole.numel() // 3)


def test_between_passes_no_weight_is_whole(model: Path) -> None:
    policy = load_policy(str(model), "float32").eval()
    seen: list[int] = []

    def count(*_: object) -> None:
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in policy.parameters()}
        seen.append(sum(storages.values()))

    whole = sum(p.numel() * 4 for p in policy.parameters())
    sharded = ShardedModule(policy, rank=0, num_ranks=1, device=torch.device("cpu"), dtype=torch.float32, on_host=True)
    for layer in policy.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(count)
    sharded(to_microbatch(make_batch(1).column(0)[0], torch.device("cpu")).inputs, 1.0)
    assert len(seen) > 7 and max(seen) < 0.8 * whole
    assert all(p.numel() == 0 for p in policy.parameters())


@pytest.mark.real
def test_what_ranks_exchange_of_offloaded_states_lies_on_the_device(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands for a GPU: NCCL takes no tensor of the host."""
    from capo_ray.learners import fsdp

    asked: list[object] = []
    deal = fsdp.fully_shard
    monkeypatch.setattr(
        fsdp, "fully_shard", lambda *args, **kw: (asked.append(kw["offload_policy"]), deal(*args, **kw))
    )
    learner = Learner(make_spec(model, FSDP_OFFLOADED, loss=LossConfig(kl_coef=0.0)))
    try:
        assert len(asked) == 3 and all(policy == fsdp.CPUOffloadPolicy(pin_memory=False) for policy in asked)
        backend: Any = learner._backend
        backend.backward(
            backend.forward(to_microbatch(make_batch(1).column(0)[0], backend.device).inputs, 1.0)[0].sum()
        )
        backend.device = torch.device("meta")
        seen: list[torch.Tensor] = []
        monkeypatch.setattr(backend, "sum_over_ranks", lambda x: (seen.append(x), torch.tensor(1.0))[1])
        assert backend.move(1e-3) == 1.0
        backend.visit_weights(lambda portion: seen.extend(portion.values()))
        assert len(seen) > 10 and {tensor.device.type for tensor in seen} == {"meta"}
        assert {moment.device.type for state in backend._adam.state.values() for moment in state.values()} == {"cpu"}
    finally:
        learner.close()


@pytest.mark.real
def test_an_offloaded_reference_measures_the_same_kl_and_can_be_refreshed_and_kept(model: Path, tmp_path: Path) -> None:
    column, reports = make_batch(1).column(0), {}
    for offload in (False, True):
        spec = make_spec(model)
        spec = dataclasses.replace(spec, learner=spec.learner.model_copy(update={"offload_reference": offload}))
        learner = Learner(spec)
        try:
            reports[offload] = [learner.update(column).metrics["loss/kl_nats"]]
            learner.refresh_reference()
            assert isinstance(learner._reference, Reference)
            save(learner, tmp_path / str(offload))
            reports[offload] += [learner.update(column).metrics["loss/kl_nats"] for _ in range(2)]
            learner.load(str(tmp_path / str(offload)))
            reports[offload] += [learner.update(column).metrics["loss/kl_nats"] for _ in range(2)]
        finally:
            learner.close()
    assert reports[True] == reports[False]
    assert reports[True][1:3] == reports[True][3:] and reports[True][2] > 0


@pytest.mark.real
def test_two_ranks_keep_their_parts_of_a_refreshed_reference(model: Path, tmp_path: Path) -> None:
    run_ranks("refresh", model, tmp_path, 2, 3, FSDP)
