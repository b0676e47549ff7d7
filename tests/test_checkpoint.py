"""Checkpoints are whole or not there; a changed byte is refused by the name of its file."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capo_ray.checkpoint import (
    MANIFEST,
    CheckpointCorrupt,
    CheckpointStore,
    Unreadable,
    read_settings,
    read_state,
    write_settings,
    write_state,
)
from capo_ray.types import WrittenFile
from tests.examples import examples
from tests.fakes import written


def write(store: CheckpointStore, version: int, text: str = "") -> None:
    draft = store.begin(version, ["learner"])
    weights = written(draft.directory / "learner" / "weights.bin", (text or f"weights of {version}") * 20)
    draft.add("learner", [weights])
    draft.write("run.json", {"version": version})
    store.seal(draft)


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


def test_an_abandoned_draft_leaves_the_old_checkpoint_and_nothing_else(store: CheckpointStore, tmp_path: Path) -> None:
    write(store, 1)
    draft = store.begin(2)
    (draft.directory / "half").write_text("x")
    store.abandon(draft)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["v000001"]
    assert latest_version(store) == 1


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda d: (d / "learner" / "weights.bin").unlink(), r"weights\.bin of 220 bytes .* got no such file"),
        (lambda d: (d / "learner" / "weights.bin").write_text("half"), r"weights\.bin of 220 bytes .* got 4"),
        (lambda d: (d / "learner" / "more.bin").write_text("?"), r"more\.bin was written by nobody"),
    ],
)
def test_a_shard_that_is_not_there_as_reported_cannot_be_sealed(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], why: str
) -> None:
    monkeypatch.setattr("capo_ray.checkpoint.store.FIND_S", 0.1)
    write(store, 1)
    draft = store.begin(2, ["learner"])
    draft.add("learner", [written(draft.directory / "learner" / "weights.bin", "weights of 2" * 20)][:1])
    draft.write("run.json", {"version": 2})
    spoil(draft.directory)
    with pytest.raises(CheckpointCorrupt, match=why.replace("220", "240")):
        store.seal(draft)
    with pytest.raises(CheckpointCorrupt, match="expected files in learner of checkpoint 2, got none"):
        draft.add("learner", [])
    assert store.versions() == [1]


def test_a_file_that_a_network_shows_late_is_waited_for(store: CheckpointStore) -> None:
    draft = store.begin(1, ["learner"])
    path = draft.directory / "learner" / "weights.bin"
    draft.add("learner", [WrittenFile("weights.bin", 4, hashlib.sha256(b"late").hexdigest())])
    threading.Timer(0.3, path.write_text, ["late"]).start()
    store.verify(store.seal(draft))


def test_sealing_reads_no_file_that_a_rank_has_hashed(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    really_open = Path.open

    def listen(path: Path, *arguments: Any, **more: Any) -> Any:
        opened.append(path.name)
        return really_open(path, *arguments, **more)

    draft = store.begin(1, ["learner"])
    draft.add("learner", [written(draft.directory / "learner" / "weights.bin", "w")])
    draft.write("run.json", {})
    monkeypatch.setattr(Path, "open", listen)
    store.seal(draft)
    assert opened and "weights.bin" not in opened


def test_a_checkpoint_of_another_run_does_not_verify(tmp_path: Path) -> None:
    write(CheckpointStore(tmp_path, keep=2, run_id="one"), 1)
    assert CheckpointStore(tmp_path, keep=2).latest() is not None, "who asks for no run takes any"
    other = CheckpointStore(tmp_path, keep=2, run_id="two")
    with pytest.raises(CheckpointCorrupt, match=r"is of another run \(one\), not of this one \(two\)"):
        other.verify(tmp_path / "v000001")
    assert other.likely() is None


@pytest.mark.parametrize("name", ["learner/weights.bin", MANIFEST])
def test_a_file_system_error_is_not_damage(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(store, 1)
    write(store, 2)
    really_open = io.open  # what Path.open calls

    def fail(path: Any, *arguments: Any, **more: Any) -> Any:
        if str(path).endswith(f"v000002/{name}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return really_open(path, *arguments, **more)

    monkeypatch.setattr(io, "open", fail)
    with pytest.raises(Unreadable, match=rf"v000002/{name} cannot be read now \(Input/output error\)"):
        store.latest()
    monkeypatch.undo()
    assert latest_version(store) == 2 and store.versions() == [1, 2]


def test_checkpoints_set_aside_are_neither_read_nor_pruned(store: CheckpointStore, tmp_path: Path) -> None:
    write(store, 4)
    store.set_aside()
    assert store.latest() is None
    for version in (1, 2, 3):
        write(store, version)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names[0].startswith("aside-") and names[0].endswith("v000004") and names[1:] == ["v000002", "v000003"]


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


@settings(max_examples=examples(80), suppress_health_check=[HealthCheck.function_scoped_fixture])
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

        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a command line run in this process has left its own
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


SETTINGS = {
    "run": {"num_updates": 40},
    "rollout": {"group_size": 4},
    "learner": {"betas": [0.9, 0.95]},
    "text": "größer",
}


def test_settings_cut_anywhere_or_with_any_bit_flipped_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_settings(path, SETTINGS)
    assert read_settings(path) == SETTINGS
    whole = path.read_bytes()
    spoiled = [whole[:end] for end in range(len(whole))]
    for bit in range(len(whole) * 8):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        spoiled.append(bytes(content))
    for content in spoiled:
        path.write_bytes(content)
        with pytest.raises(CheckpointCorrupt, match=r"config\.yaml"):
            read_settings(path)


def test_settings_edited_by_hand_are_taken_once_somebody_vouches_for_them(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_settings(path, SETTINGS)
    edited = path.read_text().replace("num_updates: 40", "num_updates: 80")
    path.write_text(edited)
    with pytest.raises(CheckpointCorrupt, match="vouch for what it holds by this first line: # sha256") as refused:
        read_settings(path)
    path.write_text(str(refused.value).rpartition("first line: ")[2] + "\n" + edited.partition("\n")[2])
    assert read_settings(path)["run"]["num_updates"] == 80
