"""A learner rank's publish: what it tells the driver and what it sends are of one version."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch

from capo_ray.place.workers import LearnerRank
from capo_ray.weights import Apart, PayloadWriter, WeightsRefused, read_manifest, verify_handle


class Weights:
    """What `LearnerRank` asks of a learner, over two tensors that move by 1 a version."""

    version, weight_bytes = 0, 40

    def visit_weights(self, visit: Callable[[dict[str, torch.Tensor]], None]) -> None:
        visit({"a": torch.full((8,), float(self.version))})
        visit({"b": torch.full((2,), float(self.version))})

    def logprobs(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(-1.0 for _ in ids[1:]) for ids in token_ids)


def make_rank(index: int) -> LearnerRank:
    rank = LearnerRank(index)
    rank._learner, rank._writer, rank._canary_ids = Weights(), PayloadWriter(), (5, 6, 7)  # type: ignore[assignment]
    return rank


def test_a_publish_says_version_fingerprint_and_bytes_of_what_it_sends() -> None:
    rank = make_rank(0)
    rank._learner.version = 3
    (version, fingerprint, num_bytes), handle = rank.publish(Apart(0.1, 1.0))
    assert handle is not None
    manifest = verify_handle(dataclasses.replace(handle, version=version, fingerprint=fingerprint))
    assert (version, num_bytes, manifest.payload_bytes) == (3, 128, 128)
    assert manifest.canary is not None and manifest.canary.allowed == Apart(0.1, 1.0)
    _, silent = rank.publish(None)
    assert silent is not None and read_manifest(silent.manifest).canary is None


def test_what_was_announced_of_one_version_refuses_the_bytes_of_another() -> None:
    rank = make_rank(0)
    _, old = rank.publish(None)
    assert old is not None
    old = dataclasses.replace(old, payload=old.payload.copy())  # type: ignore[attr-defined]
    rank._learner.version = 1
    (version, fingerprint, _), _ = rank.publish(None)
    with pytest.raises(WeightsRefused, match="says version 1, its manifest 0"):
        verify_handle(dataclasses.replace(old, version=version, fingerprint=fingerprint))


def test_only_rank_0_sends() -> None:
    assert make_rank(1).publish(None) == ((0, "", 0), None)
