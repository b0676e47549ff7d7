"""What a resume refuses, takes, records and finds: told by small files, before any actor is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from capo_ray.checkpoint import CheckpointCorrupt
from capo_ray.config import TrainConfig
from capo_ray.place import rundir
from capo_ray.protocols import RunFailed
from tests.fakes import written


def config_of(tmp_path: Path, **sections: dict[str, Any]) -> TrainConfig:
    data = tmp_path / "data.jsonl"
    if not data.exists():
        data.write_text('{"question": "1+1", "answer": "2"}\n' * 20)
    tree: dict[str, Any] = {
        "run": {"dir": str(tmp_path / "runs"), "name": "one", "num_updates": 8},
        "data": {"kind": "jsonl", "path": str(data)},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return TrainConfig.model_validate(tree)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with a checkpoint of version 4."""
    config = config_of(tmp_path)
    path, config = rundir.open_new(config)
    save(path, config, 4)
    (path / "ledger.sqlite").touch()
    return path


def save(path: Path, config: TrainConfig, version: int) -> None:
    store = rundir.checkpoints_of(path, config)
    draft = store.begin(version, ["learner"])
    draft.add("learner", [written(draft.directory / "learner" / "rank0.safetensors", f"weights of {version}")])
    draft.write("run.json", {"version": version})
    store.seal(draft)


def asked(run_dir: Path, **sections: dict[str, Any]) -> TrainConfig:
    """The run's own settings with changes, as the command line makes them."""
    tree = rundir.own_settings(run_dir).model_dump(mode="json")
    tree["resume"] = str(run_dir)
    for name, values in sections.items():
        tree[name] |= values
    return TrainConfig.model_validate(tree)


def changes_of(run_dir: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    return rundir.require_resumable(run_dir, asked(run_dir, **sections))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.path", "/another/model"),
        ("reward_model.path", "/another/model"),
        ("run.seed", 5),
        ("data.question_column", "prompt"),
        ("data.eval_frac", 0.2),
    ],
)
def test_a_change_of_what_the_run_is_about_is_refused_by_name_or_taken_on_purpose(
    run_dir: Path, key: str, value: Any
) -> None:
    section, leaf = key.split(".")
    with pytest.raises(RunFailed, match=rf"expected {key}=.* as in .*/one \(got {value}\).*changes_allowed=\[{key}\]"):
        changes_of(run_dir, **{section: {leaf: value}})
    allow = {"changes_allowed": [key]}
    sections: dict[str, dict[str, Any]] = {section: {leaf: value}}
    sections["run"] = {**sections.get("run", {}), **allow}
    assert changes_of(run_dir, **sections)[key][1] == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.name", "two"),
        ("run.dir", "/elsewhere"),
        ("model.dtype", "bfloat16"),
        ("learner.lora.rank", 4),
    ],
)
def test_names_and_shards_of_a_run_are_never_changed(run_dir: Path, key: str, value: Any) -> None:
    section, *inner, leaf = key.split(".")
    tree: dict[str, Any] = {leaf: value}
    for name in inner:
        tree = {name: tree}
    sections: dict[str, dict[str, Any]] = {section: tree}
    sections["run"] = {**sections.get("run", {}), "changes_allowed": [key]}
    with pytest.raises(RunFailed, match=rf"expected {key}=.*\(got {value}\).*leave it out"):
        changes_of(run_dir, **sections)


def test_data_may_move_but_not_change(run_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    shutil.copyfile(tmp_path / "data.jsonl", moved)
    assert list(changes_of(run_dir, data={"path": str(moved)})) == ["data.path"]
    text = moved.read_text()
    moved.write_text(text.replace("2", "3", 1))  # of the same length
    with pytest.raises(RunFailed, match=r"expected data\.path=.*data\.jsonl"):
        changes_of(run_dir, data={"path": str(moved)})
    shutil.copyfile(moved, tmp_path / "data.jsonl")
    with pytest.raises(RunFailed, match=r"expected data\.path to hold what it held when .* began \(sha256 "):
        changes_of(run_dir)
    assert changes_of(run_dir, run={"changes_allowed": ["data.path"]}) == {}


def test_a_permission_that_nothing_needs_is_refused(run_dir: Path) -> None:
    with pytest.raises(RunFailed, match=r"run\.changes_allowed names model\.path, where nothing differs"):
        changes_of(run_dir, run={"changes_allowed": ["model.path"]})


def test_other_changes_are_taken_and_recorded_with_the_settings_before(run_dir: Path) -> None:
    config = asked(run_dir, learner={"lr": 1e-5}, run={"num_updates": 16, "seed": 3, "changes_allowed": ["run.seed"]})
    changes = rundir.require_resumable(run_dir, config)
    rundir.record_session(run_dir, config, changes, version=4)
    now = rundir.own_settings(run_dir)
    assert (now.learner.lr, now.run.num_updates, now.run.seed) == (1e-5, 16, 3)
    assert now.run.changes_allowed == () and now.resume == "", "of one start alone"
    history = json.loads((run_dir / "history.json").read_text())
    session = history["sessions"][-1]
    assert session["from_version"] == 4 and session["changes"]["run.seed"] == [0, 3]
    assert session["config_before"] == "config.1.yaml" and (run_dir / "config.1.yaml").is_file()
    rundir.record_session(run_dir, asked(run_dir), {}, version=8)
    assert not (run_dir / "config.2.yaml").exists(), "nothing changed"


def test_a_resume_without_a_whole_checkpoint_refuses_and_removes_nothing(run_dir: Path, tmp_path: Path) -> None:
    shard = run_dir / "checkpoints" / "v000004" / "learner" / "rank0.safetensors"
    shard.write_text("cut")
    with pytest.raises(
        RunFailed, match=r"found 1 that are not whole \(v000004\); nothing was changed: .*from_zero=true"
    ):
        changes_of(run_dir)
    assert shard.is_file()
    shutil.move(run_dir / "checkpoints", tmp_path / "late")
    with pytest.raises(RunFailed, match="found none; nothing was changed: see that the directory is mounted"):
        changes_of(run_dir)
    assert changes_of(run_dir, run={"from_zero": True}) == {}


def test_a_resume_without_its_ledger_is_refused(run_dir: Path) -> None:
    (run_dir / "ledger.sqlite").unlink()
    with pytest.raises(RunFailed, match=r"expected the ledger .*ledger\.sqlite beside .*put it back"):
        changes_of(run_dir)


def test_beginning_again_is_refused_where_a_checkpoint_is_whole(run_dir: Path) -> None:
    with pytest.raises(RunFailed, match=r"run\.from_zero=true is for a run without .*v000004 is one"):
        changes_of(run_dir, run={"from_zero": True})


def test_a_checkpoint_of_another_run_is_none_of_this_one(run_dir: Path, tmp_path: Path) -> None:
    other, config = rundir.open_new(config_of(tmp_path, run={"name": "two"}))
    shutil.copytree(run_dir / "checkpoints", other / "checkpoints")
    with pytest.raises(RunFailed, match="found 1 that are not whole"):
        changes_of(other)
    store = rundir.checkpoints_of(other, config)
    with pytest.raises(CheckpointCorrupt, match="is of another run"):
        store.verify(other / "checkpoints" / "v000004")


def test_a_finished_run_is_refused_at_once_and_one_without_its_summary_is_finished(run_dir: Path) -> None:
    config = rundir.own_settings(run_dir)
    save(run_dir, config, 8)
    assert changes_of(run_dir) == {}, "killed after the last update: only the summary is left to do"
    (run_dir / "summary.json").write_text(json.dumps({"updates": 4}))
    assert changes_of(run_dir) == {}, "a summary of an earlier end"
    (run_dir / "summary.json").write_text(json.dumps({"updates": 8}))
    with pytest.raises(
        RunFailed, match=r"expected updates left to do, got a run that has done 8 of run\.num_updates=8"
    ):
        changes_of(run_dir)
    assert changes_of(run_dir, run={"num_updates": 9})["run.num_updates"] == (8, 9)
