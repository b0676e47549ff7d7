"""Which transport carries the weights, and what the dry run says of it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from capo_ray.checkpoint.settings import write_settings
from capo_ray.cli import plan
from capo_ray.cli.checks import check_plan
from capo_ray.cli.compose import compose_train
from capo_ray.cli.memory import estimate_memory
from capo_ray.place.cluster import object_store_bytes
from capo_ray.place.publish import MOST_LOST, WirePublisher
from capo_ray.place.transport import choose_transport
from capo_ray.problems import asset_path
from capo_ray.protocols import RunFailed, WeightsHandle
from capo_ray.weights import CollectiveReceiver, Meeting, Seat, WireLost, checkpoint_shapes

GPUS = ("learner=gpu", "engine=gpu")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ((), "host"),
        (GPUS, "host"),
        ((*GPUS, "weights.transport=nccl"), "nccl"),
        ((*GPUS, "engine.num_gpus=0.5"), "host"),
        ((*GPUS, "weights.transport=host"), "host"),
        (("weights.transport=gloo",), "gloo"),
    ],
)
def test_auto_takes_what_has_been_run_and_a_named_transport_is_taken(given: tuple[str, ...], taken: str) -> None:
    assert choose_transport(compose_train([*given])).name == taken


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("nccl",), "nccl needs whole GPUs under the learner and under the engines (got learner.num_gpus=0 and"),
        (("nccl", *GPUS, "engine.num_gpus=0.5"), "and engine.num_gpus=0.5): choose learner=gpu engine=gpu, or set"),
        (("ipc", *GPUS), "ipc needs learner and engine on one GPU, and a run gives each its own"),
    ],
)
def test_a_transport_that_the_placement_lacks_is_refused_in_a_sentence(given: tuple[str, ...], why: str) -> None:
    config = compose_train([f"weights.transport={given[0]}", *given[1:]])
    with pytest.raises(RunFailed) as caught:
        check_plan(config)
    assert why in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["auto", "host", "gloo"])
def test_the_dry_run_tells_what_carries_the_weights_and_why(given: str) -> None:
    config = compose_train([f"weights.transport={given}"])
    text, chosen = plan.to_text(config), choose_transport(config)
    assert f"weights go by {chosen.name}: {chosen.why}" in text
    assert ("(weights.transport=auto)" in text) is (given == "auto")
    assert json.loads(json.dumps(plan.to_json(config)))["transport"] == {
        "name": chosen.name,
        "why": chosen.why,
        "sends": "the whole model",
        "version_mib": 342_336 * 4 / 2**20,
    }
    assert "a version is the whole model, 1.3 MiB = 4 B x N" in text


def test_the_dry_run_tells_that_adapters_go_alone_and_how_many_bytes() -> None:
    """Rank 4 on the laptop's policy: for each of a block's seven layers, 4 x (inputs + outputs)."""
    shapes = checkpoint_shapes(str(asset_path("laptop", "policy")))
    blocks = [shape for name, shape in shapes.items() if ".layers." in name and len(shape) == 2]
    numel = sum(4 * (a + b) for a, b in blocks)
    alone = compose_train(["learner.lora.rank=4", "weights.transport=gloo", "weights.delta_frac=0.5"])
    assert f"a version is the adapters alone, {numel * 4 / 2**20:.1f} MiB = 4 B x {numel:,} of adapters" in (
        plan.to_text(alone)
    )
    rows = {row.role: {t.name: t.num_bytes for t in row.terms} for row in estimate_memory(alone)}
    assert rows["driver and Ray"]["version before"] == rows["next version"]["the one before"] == 4 * numel
    assert rows["next version"]["version"] == 342_336 * 4, "an engine on the CPU loads the whole model beside"
    merged = compose_train(["learner.lora.rank=4", "weights.adapters=merged"])
    assert "a version is the whole model, 1.3 MiB = 4 B x N" in plan.to_text(merged)
    assert object_store_bytes(merged) - object_store_bytes(compose_train(["learner.lora.rank=4"])) == 2 * 4 * (
        342_336 - numel
    )


@pytest.mark.parametrize(("written", "resumed"), [("shared_memory", "auto"), ("host", "host")])
def test_a_resumed_run_keeps_its_transport_but_for_the_only_one_of_earlier_versions(
    tmp_path: Path, written: str, resumed: str
) -> None:
    tree = compose_train([]).model_dump(mode="json")
    tree["weights"]["transport"] = written
    write_settings(tmp_path / "config.yaml", tree)
    assert compose_train([f"resume={tmp_path}"]).weights.transport == resumed


class Learner:
    """A learner whose group comes about while `works`; it notes how each version was sent."""

    def __init__(self) -> None:
        self.version, self.works, self.ways, self.places = 0, True, list[str](), 0
        self.sent = {"weights/sent_mib": 1.0}

    async def meeting_place(self) -> str:
        self.places += 1
        return f"tcp://127.0.0.1:{self.places}"

    async def publishable(self, ahead: Any, meeting: Meeting | None = None) -> WeightsHandle:
        self.version += 1
        self.ways.append("host" if meeting is None else f"{meeting.address[-1]}:{meeting.num_members}")
        if meeting is not None and not self.works:
            raise WireLost("connection closed by peer")
        return WeightsHandle(self.version, "", None)

    async def latest(self) -> WeightsHandle:
        return WeightsHandle(self.version, "", None)


class Engines:
    """Engines of these processes; the versions of `lost` do not come to one of them in buckets."""

    def __init__(self) -> None:
        self.processes, self.lost = [10, 11], set[int]()

    def pids(self) -> list[int]:
        return list(self.processes)

    def expect_weights(self, handle: WeightsHandle) -> None:
        pass

    async def load_weights(self, handle: WeightsHandle, latest: Any = None) -> int:
        if latest is not None and handle.version in self.lost:
            raise WireLost("did not come to 1 of the engines")
        return handle.version


def make_publisher() -> tuple[WirePublisher, Learner, Engines]:
    learner, engines = Learner(), Engines()
    config = compose_train(["weights.transport=gloo", "engine.tensor_parallel=2", "engine.num_workers=2"])
    return WirePublisher(learner, engines, config, "gloo"), learner, engines  # type: ignore[arg-type]


def test_a_group_is_kept_until_other_workers_are_ready_and_seats_every_tensor_parallel_one() -> None:
    publisher, learner, engines = make_publisher()
    for processes in ([10, 11], [10, 11], [10, 12], [12]):
        engines.processes = processes
        assert asyncio.run(publisher.publish()) == learner.version
    assert learner.ways == ["1:5", "1:5", "2:5", "3:3"]
    assert publisher.stats() == {"weights/fallbacks_total": 0.0, "weights/sent_mib": 1.0}


def test_a_version_that_did_not_reach_all_goes_through_host_memory_and_the_group_is_made_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    publisher, learner, engines = make_publisher()
    engines.lost = {2}
    for _ in range(3):
        asyncio.run(publisher.publish())
    assert learner.ways == ["1:5", "1:5", "host", "2:5"]
    assert "weights.transport=gloo failed (did not come to 1 of the engines); this version goes through" in caplog.text
    learner.works = False
    for _ in range(MOST_LOST + 1):
        asyncio.run(publisher.publish())
    assert learner.ways[4:] == ["2:5", "host", "3:5", "host", "4:5", "host", "host"]
    assert publisher.stats() == {"weights/fallbacks_total": 4.0, "weights/sent_mib": 1.0}


def test_whoever_waits_at_a_meeting_that_does_not_come_about_is_told_within_its_deadline() -> None:
    from capo_ray.learners.store import listen, reserve_meeting

    address = reserve_meeting("127.0.0.1")
    meeting = Meeting(address, 3, "gloo", 1, 1.0, 1 << 12)
    began, told = time.monotonic(), list[str]()

    def come() -> None:
        try:
            CollectiveReceiver(Seat(), meeting).finish()
        except WireLost as error:
            told.append(str(error))

    thread = threading.Thread(target=come)
    thread.start()
    with pytest.raises(RuntimeError):  # of three members, two come
        listen(address, 3, meeting.timeout)
    thread.join(20)
    assert told and f"could not meet at {address}" in told[0] and time.monotonic() - began < 15
