"""Run directories: whose name they have, and what stands in the way of one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cli.compose import compose_train
from capo_ray.cli.schema import ConfigError
from capo_ray.place import rundir


@pytest.mark.parametrize("name", ["latest", "/abs", "a/b", "..", "."])
def test_a_name_that_is_a_path_or_the_link_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name must be a name in run\.dir"):
        compose_train([f"run.name={name}"])


def test_two_runs_of_one_second_have_two_directories(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(rundir.time, "strftime", lambda form: "20260101-000000")
    config = compose_train(["credit=grpo", f"run.dir={tmp_path}"])
    names = [rundir.open_new(config)[1].run.name for _ in range(3)]
    assert names == ["20260101-000000-grpo", "20260101-000000-grpo-2", "20260101-000000-grpo-3"]
    assert (tmp_path / "latest").resolve().name == names[-1]


def test_a_directory_named_latest_does_not_stop_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latest").mkdir()
    path, _ = rundir.open_new(compose_train([f"run.dir={tmp_path}", "run.name=my rün 1"]))
    assert path.is_dir() and "latest does not point to this run" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "my rün 1"]


def test_the_digest_of_data_follows_every_file_that_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl"):
        (folder / name).write_text("1")

    def digests() -> dict[str, str]:
        return rundir.data_digests(compose_train(["data=files", f"data.path={folder}", f"data.eval_path={folder}"]))

    before = digests()
    assert set(before) == {"data.path", "data.eval_path"}
    (folder / "train-1.jsonl").write_text("2")
    assert digests()["data.path"] != before["data.path"] and digests()["data.eval_path"] == before["data.eval_path"]
    (folder / "test-0.jsonl").write_text("2")
    assert digests()["data.eval_path"] != before["data.eval_path"]
    file = folder / "train-0.jsonl"
    one = rundir.data_digests(compose_train(["data=gsm8k", f"data.path={file}"]))
    assert one == {"data.path": hashlib.sha256(b"1").hexdigest()}
    assert rundir.data_digests(compose_train([])) == {}
