"""Weights & Biases without a network, MLflow and Trackio with local stores: the real clients, where they are installed.

None is among the packages of `make install`: `pip install wandb mlflow trackio` elsewhere runs these tests.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from capo_ray.config.credit import CapoConfig
from capo_ray.config.sections import TrackingConfig
from capo_ray.credit import assign_credit
from capo_ray.metrics import TranscriptWriter, build_trackers
from tests.view_run import HOSTILE, one_group

SETTINGS = {"credit": {"method": "capo"}, "learner": {"lr": 1e-6}}


def follow_a_run(run_dir: Path, **tracking: bool) -> None:
    """Two updates with a transcript, and after a resume a third one."""
    config = TrackingConfig(tensorboard=False, project="tries", **tracking)  # type: ignore[arg-type]
    run_dir.mkdir()
    trackers = build_trackers(config, run_dir, SETTINGS)
    trackers.log({"eval/accuracy_frac": 0.25, "loss/kl_nats": math.nan}, update=1)
    group = one_group(2, HOSTILE)
    writer = TranscriptWriter(run_dir / "transcripts.jsonl", None, trackers.show)
    writer.write_group(2, group, assign_credit(group, CapoConfig(), 0.0))
    trackers.log({"eval/accuracy_frac": 0.5}, update=2)
    trackers.close()
    again = build_trackers(config, run_dir, {**SETTINGS, "learner": {"lr": 1e-5}}, resume_from=2)
    again.log({"eval/accuracy_frac": 0.75}, update=3)
    again.close()
    assert trackers.num_dropped == again.num_dropped == 0


def make_two_of_one_name(tmp_path: Path, **tracking: bool) -> None:
    """Two runs called `run7` in two folders, as sweeps make them; the first is resumed after the second began."""
    config = TrackingConfig(tensorboard=False, project="tries", **tracking)  # type: ignore[arg-type]
    for number, resume_from in ((1, None), (2, None), (1, 1)):
        run_dir = tmp_path / f"dir{number}" / "run7"
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "history.json").write_text(json.dumps({"run_id": f"{number}" * 32, "sessions": []}))
        trackers = build_trackers(config, run_dir, SETTINGS, resume_from=resume_from)
        trackers.log({"eval/accuracy_frac": number / 4}, update=2 if resume_from else 1)
        trackers.close()


def test_runs_of_one_name_are_two_for_wandb_and_one_of_before_keeps_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one id W&B would put the second in the place of the first."""
    began: list[tuple[str, str | None]] = []

    def init(*, id: str, resume: str | None, **_: Any) -> Any:
        began.append((id, resume))
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Table=None, init=init))
    make_two_of_one_name(tmp_path, wandb=True)
    assert began == [("run7-11111111", None), ("run7-22222222", None), ("run7-11111111", "allow")]
    older = tmp_path / "dir1" / "run7"
    (older / "wandb" / "run-20260101_000000-run7").mkdir(parents=True)
    config = TrackingConfig(tensorboard=False, wandb=True)
    build_trackers(config, older, SETTINGS, resume_from=2).close()
    assert began[-1] == ("run7", "allow")


def test_runs_of_one_name_are_two_for_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    make_two_of_one_name(tmp_path, mlflow=True)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tries")
    runs = client.search_runs([experiment.experiment_id])
    told = [[one.value for one in client.get_metric_history(run.info.run_id, "eval/accuracy_frac")] for run in runs]
    assert sorted(told) == [[0.25, 0.25], [0.5]]


def records_of(path: Path) -> Iterator[Any]:
    """The records of wandb's own file: blocks of 32 KiB, a record in one piece or more, each with a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, held = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        held += content[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(held)
            held = b""
        at += 7 + length
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768


def test_wandb_keeps_figures_settings_and_transcripts_of_a_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    follow_a_run(tmp_path / "run7", wandb=True)
    files = sorted((tmp_path / "run7" / "wandb").glob("offline-run-*-run7/run-run7.wandb"))
    assert len(files) == 2  # each session's, of one run
    records = [record for file in files for record in records_of(file)]
    rows = []
    for record in records:
        if record.HasField("history"):
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    found = {row["_step"]: row for row in rows}
    assert {step: row["eval/accuracy_frac"] for step, row in found.items()} == {1: 0.25, 2: 0.5, 3: 0.75}
    assert "loss/kl_nats" not in found[1]
    assert (found[2]["transcripts/ncols"], found[2]["transcripts/nrows"]) == (9, 4)
    (table,) = (tmp_path / "run7" / "wandb").rglob("*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert [row[4] for row in rows] == ["right"] * 3 + ["wrong"] and "\u202e" not in rows[0][3]
    runs = {record.run.run_id for record in records if record.HasField("run")}
    kept = {i.key: json.loads(i.value_json) for r in records if r.HasField("run") for i in r.run.config.update}
    assert runs == {"run7"} and kept["credit"] == {"method": "capo"}


def test_mlflow_keeps_figures_parameters_and_transcripts_of_a_run_in_a_local_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # beside a database, which mlflow-skinny does not bring
    follow_a_run(tmp_path / "run7", mlflow=True)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tries")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run7", "FINISHED")
    assert run.data.params == {"credit.method": "capo", "learner.lr": "1e-06"}
    history = client.get_metric_history(run.info.run_id, "eval/accuracy_frac")
    assert [(one.step, one.value) for one in history] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert "loss/kl_nats" not in run.data.metrics
    (text,) = (tmp_path / "store").rglob("artifacts/transcripts/update_000002_group_2.md")
    assert "**wrong** (3 critiques)" in text.read_text() and "\u202e" not in text.read_text()


def test_trackio_keeps_figures_settings_and_transcripts_of_a_run_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    follow_a_run(tmp_path / "run7", trackio=True)
    assert SQLiteStorage.get_runs("tries") == ["run7"], "a resumed run goes on in its old one"
    rows = SQLiteStorage.get_logs("tries", "run7")
    told = {row["step"]: row["eval/accuracy_frac"] for row in rows if "eval/accuracy_frac" in row}
    assert told == {1: 0.25, 2: 0.5, 3: 0.75} and not any("loss/kl_nats" in row for row in rows)
    (table,) = (row["transcripts"] for row in rows if "transcripts" in row)
    assert [row["verdict"] for row in table["_value"]] == ["right"] * 3 + ["wrong"]
    assert "\u202e" not in json.dumps(table, ensure_ascii=False)
    config = SQLiteStorage.get_run_config("tries", "run7")
    assert config is not None and config["credit.method"] == "capo"
    assert config["learner.lr"] == 1e-5, "the newest session's settings"
