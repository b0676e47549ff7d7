"""Every wait at the start of a run has an end and a sentence: here what is waited for never answers."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config import TrainConfig
from capo_ray.place import nodes, session, train
from capo_ray.place.session import files_within, find_latest, start_trackers
from capo_ray.protocols import RunFailed

CONFIG = TrainConfig.model_validate({"resume": "runs/lost", "run": {"checkpoint_deadline_s": 0.05}})
RUN = Path("runs/lost")


class Silent:
    """Files, trackers and nodes that do not answer until they are released."""

    directory = RUN / "checkpoints"

    def __init__(self) -> None:
        self.released = threading.Event()

    def latest(self) -> None:
        self.released.wait(60)

    def rewind(self, version: int) -> None:
        self.released.wait(60)

    def __call__(self, *arguments: Any, **named: Any) -> None:
        self.released.wait(60)


WAITS: dict[str, Callable[[Any], Awaitable[object]]] = {
    r"the hashing of the checkpoint to go on from did not end within run.checkpoint_deadline_s=0.05 s; see that "
    r"runs/lost/checkpoints is mounted": lambda silent: find_latest(CONFIG, silent),
    r"the rewinding of ledger.sqlite did not end within run.checkpoint_deadline_s=0.05 s; see that runs/lost is "
    r"mounted": lambda silent: train._rewind(CONFIG, RUN, silent, 3),
    r"the start of tracking did not end within 0.05 s; .*tracking.wandb=false": lambda _: start_trackers(
        CONFIG, RUN, 3
    ),
    r"the look at what the nodes have did not end within 0.1 s; .*doctor --cluster": lambda _: nodes.asked(CONFIG, RUN),
}


@pytest.mark.parametrize("sentence", WAITS)
def test_what_never_answers_at_a_start_is_named(sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Silent()
    monkeypatch.setattr(session, "build_trackers", silent)
    monkeypatch.setattr(session, "TRACKERS_S", 0.05)
    monkeypatch.setattr(nodes, "check_nodes", silent)
    monkeypatch.setattr(nodes, "ASK_S", 0.05)
    monkeypatch.setattr(nodes, "LOOK_S", 0.05)

    async def go() -> None:
        try:
            await asyncio.wait_for(asyncio.ensure_future(WAITS[sentence](silent)), 20)
        finally:
            silent.released.set()  # the loop's end waits for its threads

    with pytest.raises(RunFailed, match=sentence):
        asyncio.run(go())


def test_what_answers_in_time_is_handed_on_as_it_is() -> None:
    async def fails() -> int:
        raise KeyError("its own")

    async def answers() -> int:
        return 7

    assert asyncio.run(files_within(CONFIG, RUN, "an answer", answers())) == 7
    with pytest.raises(KeyError, match="its own"):
        asyncio.run(files_within(CONFIG, RUN, "an answer", fails()))


@pytest.mark.parametrize("job", ["train", "sft", "session", "serving"])
def test_no_job_waits_for_a_thread_without_a_deadline(job: str) -> None:
    source = Path(str(train.__file__)).with_name(f"{job}.py").read_text()
    assert not re.findall(r"await asyncio\.to_thread", source)
