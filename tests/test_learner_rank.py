"""A learner rank's publish: what it tells the driver and what it sends are of one version."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch

from capo_ray.place.roles.learner import LearnerRank
from capo_ray.protocols import RunFailed, WeightsHandle
from capo_ray.weights import Apart, PayloadWriter, WeightsRefused, Witness, read_manifest, verify_handle


class Weights:
    """What `LearnerRank` asks of a learner, over two tensors that move by 1 a version."""

    version, weight_bytes, sent_bytes = 0, 40, 40

    def visit_weights(self, visit: Callable[[dict[str, torch.Tensor]], None]) -> None:
        visit({"a": torch.full((8,), float(self.version))})
        visit({"b": torch.full((2,), float(self.version))})

    def logprobs(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(-1.0 for _ in ids[1:]) for ids in token_ids)


def make_rank(index: int) -> LearnerRank:
    rank = LearnerRank(index)
    rank._learner, rank._canary_ids = Weights(), (5, 6, 7)  # type: ignore[assignment]
    rank._writer, rank._witness = PayloadWriter(), Witness()
    return rank


def publish(rank: LearnerRank, allowed: Apart | None) -> WeightsHandle:
    """What an engine is handed: the sealed handle over the gathered bytes, with what the driver was told."""
    version, gathered = rank.gather()
    (sealed, fingerprint, num_bytes), handle = rank.seal(allowed, ["where the bytes are"])
    assert (
        handle is not None and gathered is not None and version == sealed and handle.payload == ["where the bytes are"]
    )
    payload = gathered.payload.copy()  # type: ignore[attr-defined]
    return dataclasses.replace(handle, payload=payload, version=sealed, fingerprint=fingerprint, num_bytes=num_bytes)


def test_a_publish_says_version_fingerprint_and_bytes_of_what_it_sends() -> None:
    rank = make_rank(0)
    rank._learner.version = 3
    handle = publish(rank, Apart(0.1, 1.0))
    manifest = verify_handle(handle)
    assert (handle.version, handle.num_bytes, manifest.payload_bytes) == (3, 128, 128)
    assert manifest.canary is not None and manifest.canary.allowed == Apart(0.1, 1.0)
    assert read_manifest(publish(rank, None).manifest).canary is None


def test_what_was_announced_of_one_version_refuses_the_bytes_of_another() -> None:
    rank = make_rank(0)
    old = publish(rank, None)
    rank._learner.version = 1
    new = publish(rank, None)
    with pytest.raises(WeightsRefused, match="says version 1, its manifest 0"):
        verify_handle(dataclasses.replace(old, version=new.version, fingerprint=new.fingerprint))


def test_a_diverged_policy_is_never_sealed_whatever_was_gathered() -> None:
    rank = make_rank(0)
    rank.gather()
    rank._learner.version = float("nan")  # type: ignore[assignment]
    with pytest.raises(RunFailed, match="got NaN or infinity in tensor a"):
        rank.seal(None, [])


@pytest.mark.parametrize("whole", [True, False])
def test_what_was_gathered_of_older_weights_is_refused_however_little_they_differ(whole: bool) -> None:
    """A sender whose gather gives what it gave before: the seal is of what lies in the model."""
    rank = make_rank(0)
    rank._learner.version = 4
    add = rank._writer.add

    def stale(portion: dict[str, torch.Tensor]) -> None:
        add({n: t - 1e-6 if whole or n == "b" else t for n, t in portion.items()})

    rank._writer.add = stale  # type: ignore[method-assign, assignment]
    with pytest.raises(WeightsRefused, match="is damaged, or not what the learner holds"):
        verify_handle(publish(rank, Apart(0.1, 1.0)))


def test_only_rank_0_sends() -> None:
    rank = make_rank(1)
    assert rank.gather() == (0, None) and rank.seal(None, []) == ((0, "", 0), None)
