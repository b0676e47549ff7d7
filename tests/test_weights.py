"""Weights in transit: exact round trips, and everything that does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.protocols import WeightsHandle
from capo_ray.weights import Canary, WeightsRefused, build_handle, iterate_tensors, read_manifest, verify_handle

CANARY = Canary((5, 6, 7), (-0.25, -1.5), 1e-3)


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
@settings(max_examples=60)
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
@settings(max_examples=60)
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
    with pytest.raises(ValueError, match="tensor b of version 2 is not finite"):
        build_handle({"a": torch.ones(2), "b": torch.tensor([1.0, value])}, 2, None)


@pytest.mark.parametrize(
    ("ids", "logprobs", "tolerance"),
    [((1,), (-1.0,), 1e-3), ((1, 2), (), 1e-3), ((1, 2), (float("nan"),), 1e-3), ((1, 2), (-1.0,), 0.0)],
)
def test_a_canary_that_proves_nothing_is_refused(ids: tuple, logprobs: tuple, tolerance: float) -> None:
    with pytest.raises(ValueError, match="canary"):
        Canary(ids, logprobs, tolerance)


def test_equal_weights_have_equal_fingerprints_and_others_do_not() -> None:
    one, same = (read_manifest(build_handle(tensors(), 3, None).manifest) for _ in range(2))
    changed = tensors()
    changed["scalar"] += 1e-6
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != read_manifest(build_handle(changed, 3, None).manifest).fingerprint
