"""Checkpoints are whole or not there; a changed byte is refused by the name of its file."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capo_ray.checkpoint import MANIFEST, CheckpointCorrupt, CheckpointStore, read_state, write_state


def write(store: CheckpointStore, version: int, text: str = "") -> None:
    with store.writing(version) as directory:
        (directory / "learner").mkdir()
        (directory / "learner" / "weights.bin").write_bytes((text or f"weights of {version}").encode() * 20)
        write_state(directory / "run.json", {"version": version})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def latest_version(store: CheckpointStore) -> int:
    path = store.latest()
    assert path is not None
    return int(read_state(path / "run.json")["version"])


def test_the_newest_checkpoints_are_kept_and_the_others_pruned(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.latest() is None
    for version in (3, 6, 9, 12):
        write(store, version)
    assert store.versions() == [9, 12]
    assert store.latest() == tmp_path / "checkpoints" / "v000012"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["v000009", "v000012"]


def test_an_error_while_writing_leaves_the_old_checkpoint_and_nothing_else(
    store: CheckpointStore, tmp_path: Path
) -> None:
    write(store, 1)
    with pytest.raises(OSError, match="no space"), store.writing(2) as directory:
        (directory / "half").write_text("x")
        raise OSError("no space left on device")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["v000001"]
    assert latest_version(store) == 1


def test_a_damaged_newest_checkpoint_is_passed_over_by_name(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, 1)
    write(store, 2)
    path = store.latest()
    assert path is not None
    (path / "learner" / "weights.bin").write_bytes(b"short")
    assert latest_version(store) == 1
    assert "v000002/learner/weights.bin has another size" in caplog.text


def test_going_on_from_an_older_checkpoint_gives_up_the_line_of_the_newer_ones(store: CheckpointStore) -> None:
    write(store, 10)
    write(store, 20)
    (store.latest() or Path()).joinpath("run.json").write_text("{}")
    write(store, 15)
    assert store.versions() == [10, 15] and latest_version(store) == 15


def test_writing_a_damaged_version_again_replaces_it(store: CheckpointStore) -> None:
    write(store, 1)
    write(store, 2)
    (store.latest() or Path()).joinpath("run.json").unlink()
    write(store, 2, text="second try")
    assert latest_version(store) == 2 and store.versions() == [1, 2]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["learner/weights.bin", "run.json", MANIFEST]), st.integers(0, 1 << 14))
def test_every_flipped_bit_is_refused_by_the_name_of_its_file(tmp_path: Path, name: str, bit: int) -> None:
    store = CheckpointStore(tmp_path / "flips", keep=1)
    if not store.versions():
        write(store, 7)
    path = tmp_path / "flips" / "v000007"
    store.verify(path)
    flip(path / name, bit)
    try:
        with pytest.raises(CheckpointCorrupt, match=f"v000007/{name}"):
            store.verify(path)
        assert store.latest() is None
    finally:
        flip(path / name, bit)


def test_missing_added_renamed_and_linked_files_are_refused_by_name(store: CheckpointStore, tmp_path: Path) -> None:
    write(store, 1)
    path = tmp_path / "checkpoints" / "v000001"
    (path / "extra.bin").write_text("?")
    with pytest.raises(CheckpointCorrupt, match=r"extra\.bin does not belong"):
        store.verify(path)
    (path / "extra.bin").unlink()
    (path / "run.json").rename(tmp_path / "run.json")
    with pytest.raises(CheckpointCorrupt, match=r"run\.json is missing"):
        store.verify(path)
    (path / "run.json").symlink_to(tmp_path / "run.json")
    with pytest.raises(CheckpointCorrupt, match=r"run\.json is neither a plain file"):
        store.verify(path)
    (path / "run.json").unlink()
    (tmp_path / "run.json").rename(path / "run.json")
    store.verify(path)
    path.rename(path.with_name("v000005"))
    with pytest.raises(CheckpointCorrupt, match=r"of version 1, not of v000005"):
        store.verify(path.with_name("v000005"))


def write_and_die(store: CheckpointStore, num_operations: int) -> bool:
    """Whether a forked child got through writing version 2, killed before file operation number `num_operations`."""
    child = os.fork()
    if child == 0:
        count = 0

        def die_in_time(event: str, args: tuple[object, ...]) -> None:
            nonlocal count
            if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"):
                count += 1
                if count > num_operations:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die_in_time)
        write(store, 2)
        os.kill(os.getpid(), signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGTERM)
    return os.WTERMSIG(status) == signal.SIGTERM


def test_a_kill_before_any_file_operation_leaves_the_old_checkpoint_or_the_new(tmp_path: Path) -> None:
    outcomes: list[int] = []
    survived = False
    while not survived:
        directory = tmp_path / str(len(outcomes))
        store = CheckpointStore(directory, keep=1)
        write(store, 1)
        survived = write_and_die(store, len(outcomes))
        outcomes.append(latest_version(store))
        write(store, 3)
        assert [p.name for p in directory.iterdir()] == ["v000003"], "leftovers of the crash were not removed"
    assert len(outcomes) > 10 and outcomes == sorted(outcomes) and set(outcomes) == {1, 2}


def test_state_is_read_as_written_and_refused_by_name_otherwise(tmp_path: Path) -> None:
    state = {"cursor": {"epoch": 1, "order": [3, 1]}, "text": "größer"}
    write_state(tmp_path / "run.json", state)
    assert read_state(tmp_path / "run.json") == state
    for text in ("{", "[1]", ""):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(CheckpointCorrupt, match=r"run\.json"):
            read_state(tmp_path / "run.json")
    with pytest.raises(CheckpointCorrupt, match=r"nowhere\.json"):
        read_state(tmp_path / "nowhere.json")


def test_keeping_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep >= 1"):
        CheckpointStore(tmp_path, keep=0)
