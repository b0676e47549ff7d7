"""Adapters that travel alone: what an engine makes of them, and which it refuses before it loads anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from capo_ray.config.lora import LoraConfig
from capo_ray.config.loss import LossConfig
from capo_ray.engines.swap import verify_for
from capo_ray.learners import Learner
from capo_ray.protocols import WeightsHandle
from capo_ray.weights import (
    AdaptersAlone,
    Onto,
    WeightsRefused,
    WholeModel,
    adapter_bytes,
    as_bytes,
    build_handle,
    checkpoint_shapes,
    iterate_tensors,
)
from capo_ray.weights.contents import adapter_shapes
from tests.adapter_world import AdapterWorld, State
from tests.learner_group import FSDP, lora_spec, train

UP = [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1)]
A, B = ".lora_A.weight", ".lora_B.weight"


@pytest.fixture
def world(model: Path) -> AdapterWorld:
    return AdapterWorld(model)


def write(path: Path, **tensors: torch.Tensor) -> None:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path / "model.safetensors")


@pytest.mark.parametrize(("dtype", "expected"), [("float32", 1.0 + 2**-10), ("bfloat16", 1.0)])
def test_an_engine_adds_alpha_over_rank_times_b_a_to_the_weights_of_its_files(
    tmp_path: Path, dtype: str, expected: float
) -> None:
    """W = [[1, 2]], A = [[1, 3]], B = [[2^-11]], 4 / 2: W' = [[1 + 2^-10, 2 + 3 * 2^-10]]; bf16 rounds to 2^-7."""
    write(tmp_path, layers__0__q__weight=torch.tensor([[1.0, 2.0]]), norm__weight=torch.ones(2))
    write_to = checkpoint_shapes(str(tmp_path))
    contents = AdaptersAlone(str(tmp_path), write_to, dtype, False, LoraConfig(rank=1, alpha=2.0))
    kind = getattr(torch, dtype)
    pairs = {
        "layers.0.q.lora_A.weight": torch.tensor([[1.0, 3.0]], dtype=kind),
        "layers.0.q.lora_B.weight": torch.tensor([[2.0**-11]], dtype=kind),
    }
    whole = dict(contents.whole(pairs.items()))
    assert whole.keys() == write_to.keys() and {tensor.dtype for tensor in whole.values()} == {kind}
    assert whole["layers.0.q.weight"][0, 0].item() == expected
    assert torch.equal(whole["norm.weight"], torch.ones(2, dtype=kind))
    with pytest.raises(ValueError, match=r"no layer of .* takes layers\.1\.q\.lora_A\.weight"):
        list(contents.whole([("layers.1.q.lora_A.weight", torch.ones(1, 2))]))


def test_a_head_that_shares_the_embedding_is_loaded_from_neither(tmp_path: Path) -> None:
    write(tmp_path, embed__weight=torch.ones(2, 2), lm_head__weight=torch.ones(2, 2))
    shapes = checkpoint_shapes(str(tmp_path))
    for tied in (True, False):
        contents = AdaptersAlone(str(tmp_path), shapes, "float32", tied, LoraConfig(rank=1))
        assert ("lm_head.weight" in dict(contents.whole(()))) is not tied


def test_pairs_are_of_the_matrices_of_the_blocks_and_their_bytes_are_told_from_the_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        head__weight=torch.ones(9, 3),
        layers__0__norm__weight=torch.ones(3),
        layers__0__attn__q__weight=torch.ones(5, 3),
        layers__0__mlp__up__weight=torch.ones(7, 3),
        layers__0__mlp__experts__0__up__weight=torch.ones(7, 3),
    )
    shapes, lora = checkpoint_shapes(str(tmp_path)), LoraConfig(rank=2)
    assert adapter_shapes(shapes, lora, ["q"]) == {"layers.0.attn.q" + A: (2, 3), "layers.0.attn.q" + B: (5, 2)}
    assert adapter_bytes(str(tmp_path), "bfloat16", lora) == 2 * (2 * (3 + 5) + 2 * (3 + 7))
    assert adapter_bytes(str(tmp_path), "float32", LoraConfig(rank=2, targets=("up",))) == 4 * 2 * (3 + 7)
    assert adapter_bytes(str(tmp_path / "nothing"), "float32", lora) is None


def without(pairs: State, *names: str) -> State:
    return {name: tensor for name, tensor in pairs.items() if name not in names}


def exchanged(pairs: State, side: str) -> State:
    return {**pairs, UP[0] + side: pairs[UP[1] + side], UP[1] + side: pairs[UP[0] + side]}


Make = Callable[[AdapterWorld, State, Onto], WeightsHandle]
MUTANTS: dict[str, tuple[Make, str]] = {
    "pairs permuted": (lambda w, p, o: build_handle(exchanged(exchanged(p, A), B), 3, None, p, o), "is damaged"),
    "stale A, new B": (
        lambda w, p, o: build_handle({n: w.pairs(2)[n] if A in n else t for n, t in p.items()}, 3, None, p, o),
        "is damaged",
    ),
    "cut short": (
        lambda w, p, o: dataclasses.replace(
            build_handle(p, 3, None, onto=o), payload=as_bytes(build_handle(p, 3, None).payload)[:-64]
        ),
        "bytes, expected",
    ),
    "a layer missing": (
        lambda w, p, o: build_handle(without(p, UP[1] + A, UP[1] + B), 3, None, onto=o),
        r"missing \['model.layers.1.mlp.up_proj.lora_A.weight', 'model.*B.weight'\], unknown none \(2 and 0\)",
    ),
    "a side missing": (lambda w, p, o: build_handle(without(p, UP[1] + B), 3, None, onto=o), r"\(1 and 0\)"),
    "a layer too many": (
        lambda w, p, o: build_handle({**p, "model.layers.7.mlp.up_proj" + A: p[UP[0] + A]}, 3, None, onto=o),
        r"unknown \['model.layers.7.mlp.up_proj.lora_A.weight'\]",
    ),
    "a base weight among them": (
        lambda w, p, o: build_handle({**p, "model.norm.weight": torch.ones(64)}, 3, None, onto=o),
        "unknown",
    ),
    "nothing": (lambda w, p, o: build_handle({}, 3, None, onto=o), "does not hold a pair"),
    "another rank": (
        lambda w, p, o: build_handle({**p, UP[0] + A: p[UP[0] + A][:2]}, 3, None, onto=o),
        r"up_proj.lora_A.weight: expected shape \[4, 64\], got \[2, 64\]",
    ),
    "another dtype": (
        lambda w, p, o: build_handle({n: t.bfloat16() for n, t in p.items()}, 3, None, onto=o),
        "the engine holds float32, got bfloat16",
    ),
    "another alpha": (
        lambda w, p, o: build_handle(p, 3, None, onto=Onto(o.base, 4.0)),
        "expected adapters of scale 2, got 4",
    ),
    "the base of another model": (
        lambda w, p, o: build_handle(p, 3, None, onto=Onto("0" * 64, o.scale)),
        "trained on other weights than the files of .*got 000000000000",
    ),
    "said to be no adapters": (lambda w, p, o: build_handle(p, 3, None), "holds no adapters"),
    "the base put in by another hand": (
        lambda w, p, o: dataclasses.replace(
            build_handle(p, 3, None, onto=o), fingerprint=build_handle(p, 3, None, onto=Onto("0" * 64, 2.0)).fingerprint
        ),
        "announced with fingerprint",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_of_adapters_alone_is_refused_by_name(world: AdapterWorld, name: str) -> None:
    make, why = MUTANTS[name]
    pairs, onto = world.pairs(1), world.onto
    assert verify_for(build_handle(pairs, 3, None, onto=onto), world.contents).version == 3
    with pytest.raises(WeightsRefused, match=why):
        verify_for(make(world, pairs, onto), world.contents)


def test_an_engine_of_whole_versions_refuses_adapters(world: AdapterWorld) -> None:
    whole = WholeModel(checkpoint_shapes(str(world.path)), "float32", True)
    with pytest.raises(WeightsRefused, match="holds adapters alone, expected the whole model"):
        verify_for(build_handle(world.pairs(1), 3, None, onto=world.onto), whole)


def test_files_that_were_changed_under_an_engine_are_the_base_of_nothing(tmp_path: Path, world: AdapterWorld) -> None:
    weights = load_file(world.path / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors")
    handle, contents = build_handle(world.pairs(1), 3, None, onto=world.onto), AdapterWorld(tmp_path).contents
    verify_for(handle, contents)
    weights["model.norm.weight"][0] += 2**-20
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsRefused, match="trained on other weights"):
        verify_for(handle, contents)


@pytest.mark.parametrize(("backend", "stage"), [("torch", 2), ("zero", 3), ("fsdp", FSDP)])
def test_what_a_learner_sends_is_merged_into_its_own_weights_bit_by_bit(
    tmp_path: Path, model: Path, backend: str, stage: int
) -> None:
    """From the same base, which both sides tell apart from another one; a weight of -0 is no other base."""
    weights = load_file(model / "model.safetensors")
    weights[UP[0] + ".weight"][0, 0] = -0.0
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    spec = lora_spec(tmp_path, backend=backend, stage=stage, loss=LossConfig(kl_coef=0.0))
    learner = Learner(dataclasses.replace(spec, adapters_alone=True))
    try:
        onto = learner.require_files_weights()
        train(learner, 1, 0)
        sent: dict[str, torch.Tensor] = {}
        learner.visit_weights(lambda portion: sent.update({name: tensor.clone() for name, tensor in portion.items()}))
        handle, held = build_handle(sent, 2, None, onto=onto), learner.named_tensors()
    finally:
        learner.close()
    assert onto is not None and held is not None
    assert learner.sent_bytes == sum(tensor.nbytes for tensor in sent.values()) < learner.weight_bytes / 2
    assert sent.keys() == adapter_shapes(checkpoint_shapes(str(tmp_path)), spec.learner.lora).keys()
    contents = AdapterWorld(tmp_path).contents
    manifest = verify_for(handle, contents)
    whole = dict(contents.whole(iterate_tensors(manifest, handle.payload)))
    assert whole.keys() == held.keys() and all(torch.equal(whole[name], held[name]) for name in held)
