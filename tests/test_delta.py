"""What changed of a version in place of all of it: the same bits at the other end, and few bytes on the way."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
import torch

from capo_ray.learners.store import listen, reserve_meeting
from capo_ray.weights import (
    CollectiveReceiver,
    CollectiveSender,
    Meeting,
    Seat,
    WireLost,
    Witness,
    delta,
    read_manifest,
)
from capo_ray.weights.writer import as_flat

State = dict[str, torch.Tensor]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_changes_written_over_the_old_tensor_are_the_new_one_bit_for_bit(dtype: torch.dtype) -> None:
    """200 random pairs, with bit patterns of NaN and of -0 among them."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        size = int(torch.randint(1, 60, (1,), generator=generator)) * dtype.itemsize
        old = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        new = torch.where(torch.rand(size, generator=generator) < 0.2, 255 - old, old)
        data, count = delta.encode(new, old, dtype.itemsize, 1.0)
        assert data is not None
        got = old.clone()
        delta.write_over(got, data, count, dtype.itemsize)
        assert torch.equal(got, new)


def test_minus_zero_is_a_change_and_the_same_nan_is_none() -> None:
    old = torch.tensor([0.0, float("nan"), 1.0])
    assert delta.encode(as_flat(torch.tensor([-0.0, float("nan"), 1.0])), as_flat(old), 4, 1.0)[1] == 1


def test_a_tensor_that_changed_too_much_or_of_eight_byte_values_is_sent_whole() -> None:
    old, new = torch.zeros(10), torch.cat([torch.ones(3), torch.zeros(7)])
    assert delta.encode(as_flat(new), as_flat(old), 4, 0.3)[0] is not None
    assert delta.encode(as_flat(new), as_flat(old), 4, 0.29) == (None, 3)
    assert delta.encode(as_flat(old.double()), as_flat(new.double()), 8, 1.0) == (None, 10)


def test_a_place_outside_of_the_tensor_is_refused() -> None:
    data, count = delta.encode(as_flat(torch.ones(8)), as_flat(torch.zeros(8)), 4, 1.0)
    assert data is not None
    with pytest.raises(ValueError, match="expected places within 4 values, got 0 to 7"):
        delta.write_over(as_flat(torch.zeros(4)), data, count, 4)


@pytest.mark.parametrize(("dtype", "times"), [(torch.bfloat16, 50), (torch.float32, 50)])
def test_a_hundredth_of_the_values_takes_less_than_a_fiftieth_of_the_bytes(dtype: torch.dtype, times: int) -> None:
    old = torch.ones(100_000, dtype=dtype)
    new = torch.where(torch.rand(len(old), generator=torch.Generator().manual_seed(0)) < 0.01, old * 1.5, old)
    data, count = delta.encode(as_flat(new), as_flat(old), dtype.itemsize, 0.3)
    assert data is not None and times * len(data) < len(as_flat(new))
    got = as_flat(old).clone()
    delta.write_over(got, data, count, dtype.itemsize)
    assert torch.equal(got, as_flat(new))


@pytest.mark.parametrize("between", [1, 254, 255, 256, 510, 511, 1021, 5000])
def test_places_however_far_apart_take_at_most_four_bytes_each(between: int) -> None:
    old = torch.zeros(between * 9 + 3, dtype=torch.int8)
    new = old.clone()
    new[torch.arange(9) * between + 2] = 7
    data, count = delta.encode(as_flat(new), as_flat(old), 1, 1.0)
    assert data is not None and count == 9 and len(data) <= 9 * 5
    delta.write_over(as_flat(old), data, count, 1)
    assert torch.equal(old, new)


def test_changes_with_another_number_of_places_are_refused() -> None:
    data, _ = delta.encode(as_flat(torch.ones(8)), as_flat(torch.zeros(8)), 4, 1.0)
    assert data is not None
    with pytest.raises(ValueError, match="expected 7 places, got "):
        delta.write_over(as_flat(torch.zeros(8)), data, 7, 4)


class Ends:
    """A sender and two receivers, each on a thread, in one group."""

    def __init__(self, frac: float) -> None:
        self.frac, self.seats = frac, [Seat(), Seat()]
        self.sender = CollectiveSender(listen)
        self.address = reserve_meeting("127.0.0.1")

    def send(self, state: State, version: int) -> list[CollectiveReceiver]:
        """The receivers, once each has all of a version; raises what one raised."""
        meeting = Meeting(self.address, 3, "gloo", version, 20.0, 1 << 10, self.frac)
        receivers = [CollectiveReceiver(seat, meeting, keep=True) for seat in self.seats]
        failures: list[Exception] = []

        def take(receiver: CollectiveReceiver) -> None:
            try:
                receiver.finish()
            except WireLost as error:
                failures.append(error)

        threads = [threading.Thread(target=take, args=[receiver]) for receiver in receivers]
        for thread in threads:
            thread.start()
        self.sender.meet(meeting)
        self.sender.begin(version)
        self.sender.add(state)
        self.sender.gathered()
        for thread in threads:
            thread.join(30)
        if failures:
            raise failures[0]
        return receivers

    def check(self, state: State, version: int) -> None:
        """The version comes whole, bit for bit, and what the receivers say of it is what the seal says."""
        receivers = self.send(state, version)
        assert not self.sender.failure
        witness = Witness()
        witness.begin(version)
        witness.add(state)
        sealed = read_manifest(self.sender.seal(witness, None).manifest)
        for receiver in receivers:
            assert receiver.manifest.places == sealed.places
            assert receiver.found == {(e.offset, e.num_bytes): e.checksum for e in sealed.tensors}
            for name, tensor in state.items():
                assert torch.equal(as_flat(receiver.kept[name]), as_flat(tensor))
                assert receiver.kept[name].shape == tensor.shape


@pytest.fixture
def states() -> Iterator[State]:
    """Versions of a model with tensors of several types, smaller and larger than a bucket; few values change."""

    def versions() -> Iterator[State]:
        rng, generator = random.Random(5), torch.Generator().manual_seed(5)
        state = {
            f"t{i}": torch.randn(rng.randint(1, 60), 13, generator=generator).to([torch.float32, torch.bfloat16][i % 2])
            for i in range(12)
        } | {"empty": torch.empty(0, 4), "scalar": torch.tensor(3.0), "still": torch.ones(500)}
        while True:
            yield state
            state = {
                n: torch.where(torch.rand(t.shape, generator=generator) < (n != "still") * 0.02, t * 1.5, t)
                for n, t in state.items()
            }

    return versions()


def test_a_tensor_that_was_cut_on_the_way_is_missed_once_all_has_come(
    states: Iterator[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in the midst of it, which would leave the sender and the other members waiting for their time limit."""
    ends, write = Ends(0.0), CollectiveSender._write

    def cut(self: CollectiveSender, name: str, dtype: str, shape: list[int], flat: torch.Tensor) -> None:
        write(self, name, dtype, shape, flat[:-4] if name == "t3" else flat)

    monkeypatch.setattr(CollectiveSender, "_write", cut)
    with pytest.raises(WireLost, match="it ended within tensor t3"):
        ends.send(next(states), 1)
    assert not ends.sender.failure


@pytest.mark.parametrize("frac", [0.0, 0.25])
def test_a_version_in_buckets_comes_bit_for_bit_whether_all_or_its_changes_are_sent(
    frac: float, states: Iterator[State]
) -> None:
    ends, sent = Ends(frac), []
    for version in range(1, 7):
        ends.check(next(states), version)
        sent.append(ends.sender.sent_bytes)
    assert (max(sent[1:]) < 0.1 * sent[0]) is bool(frac)
    assert (ends.sender.num_changed < 0.05 * ends.sender.num_values) is bool(frac) or not frac
    assert bool(ends.seats[0].last) is bool(frac)  # no copy is kept where none is needed


def test_a_member_that_holds_another_version_takes_no_changes_of_this_one(states: Iterator[State]) -> None:
    ends = Ends(0.25)
    ends.check(next(states), 1)
    ends.seats[0].last_version = 0
    with pytest.raises(WireLost, match="changes of version 1, and this end holds version 0"):
        ends.send(next(states), 2)
    ends.address = reserve_meeting("127.0.0.1")  # met anew, all is sent
    state = next(states)
    ends.check(state, 3)
    assert ends.sender.sent_bytes == sum(t.numel() * t.element_size() for t in state.values())


def test_a_version_that_was_given_up_does_not_take_the_seat_of_the_one_after_it(states: Iterator[State]) -> None:
    ends = Ends(0.0)
    ends.check(next(states), 1)
    old = ends.seats[0]._group
    ends.address = reserve_meeting("127.0.0.1")
    ends.check(next(states), 2)
    ends.seats[0].leave(old)  # its thread ends late
    ends.check(next(states), 3)


def test_a_member_that_is_gone_ends_the_waits_of_the_others_and_the_visit_goes_on(states: Iterator[State]) -> None:
    """Other ranks of the learner stand in the gather, so that the sender must not leave it."""
    ends, state = Ends(0.0), next(states)
    ends.check(state, 1)
    ends.seats.pop().leave()
    with pytest.raises(WireLost, match="version 2 did not come whole"):
        ends.send(state, 2)
    assert ends.sender.failure
    assert len(read_manifest(ends.sender.gathered().manifest).tensors) == len(state)
