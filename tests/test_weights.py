"""Weights in transit: exact round trips, and everything that does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.protocols import RunFailed, WeightsHandle
from capo_ray.sizing import store_bytes, transfer_deadline_s
from capo_ray.weights import (
    Apart,
    Canary,
    PayloadWriter,
    WeightsRefused,
    Witness,
    allowance,
    apart,
    build_handle,
    checkpoint_shapes,
    iterate_tensors,
    publish_bytes,
    read_manifest,
    verify_handle,
)
from capo_ray.weights.checksum import BLOCK_BYTES, checksum, device_checksum
from tests.examples import examples

ALLOWED = Apart(1e-3, 1e-3)
CANARY = Canary((5, 6, 7), (-0.25, -1.5), ALLOWED)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "model.embed_tokens.weight": torch.randn(7, 3, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "transposed": torch.randn(4, 6, generator=generator).t(),
        "empty": torch.empty(0, 3),
        "whole": torch.arange(6).reshape(2, 3),
    }


@pytest.fixture
def handle() -> WeightsHandle:
    return build_handle(tensors(), 3, CANARY)


def test_every_tensor_comes_out_as_it_went_in(handle: WeightsHandle) -> None:
    out = dict(iterate_tensors(handle.manifest, handle.payload))
    assert list(out) == list(tensors())
    for name, tensor in tensors().items():
        assert out[name].dtype == tensor.dtype and torch.equal(out[name], tensor)


def test_the_manifest_says_version_canary_and_aligned_places(handle: WeightsHandle) -> None:
    manifest = read_manifest(handle.manifest)
    assert (manifest.version, handle.version, manifest.canary) == (3, 3, CANARY)
    assert CANARY.start == 1
    assert all(entry.offset % 64 == 0 for entry in manifest.tensors)
    # 84 -> 128, 10 -> 64, 4 -> 64, 96 -> 128, 0 -> 0, 48 -> 64 bytes
    assert [entry.offset for entry in manifest.tensors] == [0, 128, 192, 256, 384, 384]
    assert manifest.payload_bytes == 448 == verify_handle(handle).payload_bytes


def test_a_read_only_payload_is_read_without_a_copy(handle: WeightsHandle) -> None:
    assert isinstance(handle.payload, np.ndarray)
    handle.payload.flags.writeable = False
    name, tensor = next(iter(iterate_tensors(handle.manifest, handle.payload)))
    assert name == "model.embed_tokens.weight" and tensor.data_ptr() == handle.payload.ctypes.data


@given(st.integers(0, 447), st.integers(1, 255))
@settings(max_examples=examples(60))
def test_any_changed_byte_of_a_tensor_is_seen(position: int, change: int) -> None:
    handle = build_handle(tensors(), 3, CANARY)
    assert isinstance(handle.payload, np.ndarray)
    handle.payload[position] ^= change
    entries = read_manifest(handle.manifest).tensors
    in_tensor = any(e.offset <= position < e.offset + e.num_bytes for e in entries)
    if in_tensor:
        with pytest.raises(WeightsRefused, match="damaged"):
            verify_handle(handle)
    else:  # padding carries nothing
        verify_handle(handle)


@given(st.data())
@settings(max_examples=examples(60))
def test_any_changed_character_of_the_manifest_is_refused(data: st.DataObject) -> None:
    text = build_handle({"w": torch.ones(2)}, 3, CANARY).manifest
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in '0123456789abcdef",{}[]' if c != text[at]]))
    with pytest.raises(WeightsRefused):
        read_manifest(text[:at] + other + text[at + 1 :])


def edited(change: Callable[[dict], None]) -> str:
    """A manifest with a change and a fingerprint that fits it: what a mistaken sender could make."""
    from capo_ray.weights.manifest import Manifest, TensorEntry

    data = json.loads(build_handle(tensors(), 3, None).manifest)
    change(data)
    entries = tuple(TensorEntry(n, d, tuple(s), o, b, c) for n, d, s, o, b, c in data["tensors"])
    return Manifest(data["version"], data["payload_bytes"], entries, None).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["tensors"][0].__setitem__(2, [7, 4]), "does not fit"),
        (lambda d: d["tensors"][0].__setitem__(3, 10**6), "does not fit"),
        (lambda d: d["tensors"][0].__setitem__(3, -64), "does not fit"),
        (lambda d: d["tensors"][0].__setitem__(2, [-7, -3]), "does not fit"),
        (lambda d: d["tensors"][0].__setitem__(1, "complex64"), "unknown dtype"),
        (lambda d: d["tensors"].append(d["tensors"][0]), "comes twice"),
        (lambda d: d.__setitem__("payload_bytes", 447), "448 bytes, expected 447"),
        (lambda d: d.__setitem__("version", 4), "says version 3, its manifest 4"),
    ],
)
def test_a_manifest_that_does_not_fit_its_payload_is_refused(change: Callable[[dict], None], message: str) -> None:
    payload = build_handle(tensors(), 3, None).payload
    with pytest.raises(WeightsRefused, match=message):
        verify_handle(WeightsHandle(3, edited(change), payload))


@pytest.mark.parametrize("payload", ["text", np.zeros(448, dtype=np.float32), np.zeros((8, 56), dtype=np.uint8)])
def test_a_payload_that_is_not_flat_bytes_is_refused(handle: WeightsHandle, payload: object) -> None:
    with pytest.raises(WeightsRefused, match="payload must be"):
        verify_handle(WeightsHandle(3, handle.manifest, payload))


def test_bytes_serve_as_payload(handle: WeightsHandle) -> None:
    assert isinstance(handle.payload, np.ndarray)
    verify_handle(WeightsHandle(3, handle.manifest, handle.payload.tobytes()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_weight_is_never_published(value: float) -> None:
    with pytest.raises(RunFailed, match="NaN or infinity in tensor b of version 2"):
        build_handle({"a": torch.ones(2), "b": torch.tensor([1.0, value])}, 2, None)


@pytest.mark.parametrize(
    ("ids", "logprobs", "allowed"),
    [
        ((1,), (-1.0,), ALLOWED),
        ((1, 2), (), ALLOWED),
        ((1, 2), (float("nan"),), ALLOWED),
        ((1, 2), (-1.0,), Apart(1e-3, 0.0)),
        ((1, 2), (-1.0,), Apart(math.inf, 1.0)),
    ],
)
def test_a_canary_that_proves_nothing_is_refused(ids: tuple, logprobs: tuple, allowed: Apart) -> None:
    with pytest.raises(ValueError, match="canary"):
        Canary(ids, logprobs, allowed)


def test_equal_weights_have_equal_fingerprints_and_others_do_not() -> None:
    one, same = (read_manifest(build_handle(tensors(), 3, None).manifest) for _ in range(2))
    changed = tensors()
    changed["scalar"] += 1e-6
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != read_manifest(build_handle(changed, 3, None).manifest).fingerprint


def test_an_older_version_under_a_new_number_is_refused_though_it_is_whole() -> None:
    """Relabelled, checksums and fingerprint made anew: what the sender announced is what it must be."""
    old = build_handle(tensors(), 2, CANARY)
    announced = build_handle({name: tensor + 1 for name, tensor in tensors().items()}, 3, CANARY)
    for handle in (old, build_handle(tensors(), 3, CANARY)):
        claimed = dataclasses.replace(handle, version=3, fingerprint=announced.fingerprint)
        with pytest.raises(WeightsRefused, match=r"its manifest 2|announced with fingerprint"):
            verify_handle(claimed)
    verify_handle(dataclasses.replace(announced, fingerprint=announced.fingerprint))


def written(writer: PayloadWriter, version: int, *portions: dict[str, torch.Tensor]) -> WeightsHandle:
    """A version that was gathered and sealed from the same portions."""
    witness = Witness(num_threads=3)
    writer.begin(version)
    witness.begin(version)
    for portion in portions:
        writer.add(portion)
        witness.add(portion)
    return writer.seal(witness, CANARY)


def test_checksums_do_not_depend_on_threads_or_portions() -> None:
    parts = tensors()
    handle = written(PayloadWriter(num_threads=3), 3, *({name: tensor} for name, tensor in parts.items()))
    assert handle.fingerprint == build_handle(parts, 3, CANARY).fingerprint
    assert handle.num_bytes == 448
    assert verify_handle(handle, num_threads=3).version == 3


def test_a_writer_writes_the_next_version_over_the_last_in_the_same_memory() -> None:
    writer = PayloadWriter()
    first = written(writer, 1, tensors())
    second = written(writer, 2, {name: tensor * 2 for name, tensor in tensors().items()})
    assert isinstance(first.payload, np.ndarray) and isinstance(second.payload, np.ndarray)
    assert first.payload.ctypes.data == second.payload.ctypes.data
    out = dict(iterate_tensors(verify_handle(second), second.payload))
    assert torch.equal(out["half"], tensors()["half"] * 2)
    with pytest.raises(WeightsRefused, match="damaged"):
        verify_handle(first)


def test_a_copy_that_did_not_happen_is_seen_by_the_receiver() -> None:
    """The buffer keeps the last version: a tensor left out of the copy would be an old one under a new number."""
    writer = PayloadWriter()
    written(writer, 1, tensors())
    handle = written(writer, 2, {name: tensor + 1 for name, tensor in tensors().items()})
    assert isinstance(handle.payload, np.ndarray)
    old = build_handle(tensors(), 1, None).payload
    handle.payload[:128] = old[:128]  # type: ignore[index]
    with pytest.raises(WeightsRefused, match="embed_tokens"):
        verify_handle(handle)


def test_what_is_gathered_can_be_begun_on_and_is_refused_until_it_is_sealed() -> None:
    writer = PayloadWriter()
    writer.begin(3)
    writer.add(tensors())
    gathered = writer.gathered()
    for name, tensor in iterate_tensors(gathered.manifest, gathered.payload):
        assert torch.equal(tensor, tensors()[name])
    sealed = build_handle(tensors(), 3, None)
    assert read_manifest(gathered.manifest).tensors == read_manifest(sealed.manifest).places
    with pytest.raises(WeightsRefused, match="damaged, or not what the learner holds"):
        verify_handle(gathered)


@pytest.mark.parametrize("how", ["missing", "more", "shape", "dtype", "twice"])
def test_a_gather_that_is_not_what_the_model_holds_is_not_sealed(how: str) -> None:
    parts, witness, writer = tensors(), Witness(), PayloadWriter()
    witness.add(parts)
    if how == "missing":
        del parts["scalar"]
    elif how == "more":
        parts["novel"] = torch.ones(2)
    elif how == "shape":
        parts["whole"] = parts["whole"].t()
    elif how == "dtype":
        parts["half"] = parts["half"].half()
    writer.add(parts)
    if how == "twice":
        writer.add({"scalar": parts["scalar"]})
    with pytest.raises(RunFailed, match="version 0 must be gathered as the model holds it"):
        writer.seal(witness, None)


def test_a_gather_of_other_weights_than_the_model_holds_is_refused_however_little_they_differ() -> None:
    stale = tensors()
    stale["scalar"] = stale["scalar"] - 1e-6
    with pytest.raises(WeightsRefused, match="scalar of version 3 is damaged, or not what the learner holds"):
        verify_handle(build_handle(stale, 3, CANARY, held=tensors()))


def test_a_finite_weight_whose_sum_overflows_is_published() -> None:
    large = torch.full((4,), 3e38)
    assert torch.isinf(large.sum())
    verify_handle(build_handle({"w": large, "none": torch.empty(0)}, 1, None))


def scores(*gaps: float) -> tuple[float, ...]:
    """Logprobs that lie `gaps` from -1."""
    return tuple(gap - 1.0 for gap in gaps)


def test_engine_and_learner_lie_apart_by_the_mean_and_by_the_worst_token() -> None:
    distance = apart(scores(0.5, -0.25, 0.0, 0.25), scores(0.0, 0.0, 0.0, 0.0))
    assert (distance.mean, distance.worst) == (0.25, 0.5)
    assert distance.within(Apart(0.25, 0.5))
    assert not distance.within(Apart(0.24, 0.5)) and not distance.within(Apart(0.25, 0.49))
    assert not apart(scores(math.nan), scores(0.0)).within(Apart(9.0, 9.0))


def test_what_is_allowed_follows_from_the_noise_and_has_a_floor_by_dtype() -> None:
    assert allowance("float32", Apart(0.0, 0.0)) == Apart(2e-4, 1e-3)
    assert allowance("float32", Apart(1e-3, 1e-3)) == Apart(3e-3, 8e-3)
    assert allowance("bfloat16", Apart(0.03, 0.2)) == Apart(pytest.approx(0.09), pytest.approx(1.6))
    assert allowance("bfloat16", Apart(0.001, 0.01)) == Apart(0.04, 1.0)


def test_an_engine_that_scores_to_the_last_bit_as_before_holds_the_old_weights() -> None:
    """In bf16 one update lies within the noise; no change at all does not."""
    allowed = Apart(0.04, 1.0)
    first = Canary((1, 2, 3), scores(0.0, 0.0), allowed).judge(scores(0.01, -0.01), 1)
    moved = Canary((1, 2, 3), scores(0.02, 0.02), allowed)
    with pytest.raises(WeightsRefused, match="still computes with the old weights"):
        moved.judge(scores(0.01, -0.01), 2, first)
    moved.judge(scores(0.02, 0.01), 2, first)
    # Published again, or an update too small to show: nothing to see.
    Canary((1, 2, 3), scores(0.02, 0.02), allowed).judge(scores(0.01, -0.01), 1, first)
    Canary((1, 2, 3), scores(0.001, 0.001), allowed).judge(scores(0.01, -0.01), 2, first)


def test_the_object_store_and_the_deadline_follow_from_the_bytes_of_a_version(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1000, 10), "b": torch.zeros(5)}, tmp_path / "model.safetensors")
    assert checkpoint_shapes(str(tmp_path)) == {"a": (1000, 10), "b": (5,)}
    assert publish_bytes(str(tmp_path), "bfloat16") == 20_010
    assert publish_bytes(str(tmp_path / "none"), "bfloat16") is None
    gib = 1 << 30
    assert store_bytes(15 * gib, 64 * gib) == 30 * gib + gib // 4
    assert store_bytes(15 * gib, 16 * gib) == int(0.9 * 16 * gib)  # the rest of two versions goes through a file
    assert store_bytes(None, 64 * gib) == gib // 4
    # 32B in bf16: 65.5 GB took 125 s by the audit's arithmetic, and 120 s were allowed.
    assert transfer_deadline_s(65_500_000_000) == 120 + 655


def test_a_checksum_sees_a_flip_a_swap_and_a_move_anywhere() -> None:
    chance = np.random.default_rng(0)
    payload = chance.integers(0, 256, 3 * BLOCK_BYTES + 5, dtype=np.uint8)
    whole = checksum(payload)
    assert whole == checksum(payload.copy())
    parts = checksum(payload[2 * BLOCK_BYTES :], checksum(payload[: 2 * BLOCK_BYTES]))
    assert whole == parts, "as a writer takes it, block by block"
    for _ in range(300):
        damaged = payload.copy()
        damaged[chance.integers(len(payload))] ^= 1 << chance.integers(8)
        assert checksum(damaged) != whole
        words = payload[: 3 * BLOCK_BYTES].view(np.uint64).copy()
        one, other = chance.integers(len(words), size=2)
        row = one // 1024 * 1024
        for a, b in ((one, other), (one, row + other % 1024), (one, (one + 1024) % len(words))):
            swapped = words.copy()
            swapped[[a, b]] = swapped[[b, a]]
            bytes_of = np.concatenate([swapped.view(np.uint8), payload[3 * BLOCK_BYTES :]])
            assert checksum(bytes_of) != whole or a == b
    moved = np.concatenate([payload[BLOCK_BYTES : 2 * BLOCK_BYTES], payload[:BLOCK_BYTES], payload[2 * BLOCK_BYTES :]])
    assert checksum(moved) != whole and checksum(payload[:0]) == 0


def test_each_worker_of_an_engine_must_have_been_sent_what_was_announced() -> None:
    """Half of the workers with older tensors, in another order or with one less: refused by what came to them."""
    handle = build_handle(tensors(), 3, CANARY)
    manifest = read_manifest(handle.manifest)
    found = {(e.offset, e.num_bytes): e.checksum for e in manifest.tensors}
    came = dataclasses.replace(manifest, tensors=manifest.places, canary=None)
    assert verify_handle(handle, found=found, came=came) == manifest
    older = {place: seen ^ 1 if place == max(found) else seen for place, seen in found.items()}
    with pytest.raises(WeightsRefused, match="is damaged, or not what the learner holds"):
        verify_handle(handle, found=older, came=came)
    for tensors_ in (came.tensors[:-1], came.tensors[::-1]):
        with pytest.raises(WeightsRefused, match=r"must come with the tensors that its manifest names \(got "):
            verify_handle(handle, found=found, came=dataclasses.replace(came, tensors=tensors_))


@pytest.mark.parametrize("size", [0, 5, BLOCK_BYTES, 2 * BLOCK_BYTES, 3 * BLOCK_BYTES + 77])
@pytest.mark.parametrize("offset", [0, 2, 8])
def test_a_checksum_that_is_summed_on_the_device_is_the_hosts(size: int, offset: int) -> None:
    """On the CPU, whose sums of 64-bit words wrap around as a GPU's do."""
    flat = torch.randint(0, 256, (size + offset,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    part = flat[offset:]
    assert device_checksum(part) == checksum(part.numpy())
