"""Supervised runs: their directory, their resumption and their ends, and ranks on a cluster beside one rank here."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from capo_ray.checkpoint import CheckpointStore, read_settings
from capo_ray.cli import main
from capo_ray.config import SftConfig
from capo_ray.metrics import read_rows
from capo_ray.metrics.register import unregistered
from capo_ray.place.rundir import own_settings

SMALL = ("model.hidden_size=32", "model.num_layers=1", "model.num_heads=1", "model.intermediate_size=32")
QUICK = (*SMALL, "batch_size=4", "eval_problems=0", "tracking.tensorboard=false", "learner.warmup_updates=2")


@pytest.fixture(autouse=True)
def runs_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*overrides: str) -> int:
    return main(["sft", *overrides])


def losses(run_dir: str) -> list[float]:
    return [row["loss/objective_mean"] for row in read_rows(Path(run_dir, "metrics.jsonl"))]


def weights(model: str) -> dict[str, torch.Tensor]:
    return load_file(Path(model, "model.safetensors"))


def run_and_signal(signum: signal.Signals, run_dir: str, overrides: Sequence[str]) -> int:
    """The exit code of a run that is sent a signal once it has made three updates more."""
    return run_and_meanwhile(lambda: os.kill(os.getpid(), signum), run_dir, overrides)


def run_and_meanwhile(act: Callable[[], object], run_dir: str, overrides: Sequence[str]) -> int:
    """The exit code of a run during which something is done once it has made three updates more."""
    before = len(losses(run_dir))

    def send() -> None:
        while len(losses(run_dir)) < before + 3:
            time.sleep(0.01)
        act()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    code = run(*overrides)
    sender.join()
    return code


def test_a_run_that_goes_on_sees_what_it_would_have_seen() -> None:
    assert run(*QUICK, "run.num_updates=6", "run.name=whole") == 0
    assert run(*QUICK, "run.num_updates=6", "run.name=halves", "run.max_minutes=0.00001") == 0
    assert len(losses("runs/halves")) == 1 and not Path("runs/halves/model").exists()
    assert json.loads(Path("runs/halves/summary.json").read_text())["stopped_early"].startswith("run.max_minutes")
    assert run("resume=runs/halves", "run.max_minutes=0") == 0
    assert losses("runs/halves") == losses("runs/whole") and len(losses("runs/whole")) == 6
    one, other = weights("runs/whole/model"), weights("runs/halves/model")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_is_asked_to_end_saves_its_last_update_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    endless = ("run.num_updates=100000", "run.checkpoint_every=100000", "run.name=ended")
    assert run_and_signal(signal.SIGTERM, "runs/ended", (*QUICK, *endless)) == 143
    num_done = len(losses("runs/ended"))
    said = capsys.readouterr().err
    assert f"version {num_done} is saved; go on with capo-ray sft resume={Path('runs/ended').resolve()}" in said
    assert said.count("\n") == 2, "what is done about the signal, and how it ended"
    assert run_and_signal(signal.SIGINT, "runs/ended", ["resume=runs/ended"]) == 130
    store = CheckpointStore(Path("runs/ended/checkpoints"), keep=2)
    assert store.versions() == [num_done, len(losses("runs/ended"))] and store.latest() is not None


def test_a_runs_directory_holds_its_settings_registered_metrics_and_the_newest_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ("run.num_updates=3", "run.checkpoint_every=1", "run.keep_checkpoints=2", "run.name=one", "out=~/model")
    assert run(*QUICK, *keys) == 0
    config = own_settings(Path("runs/one"))
    assert isinstance(config, SftConfig) and (config.run.name, config.batch_size) == ("one", 4)
    assert "critic" not in read_settings(Path("runs/one/config.yaml"))
    rows = read_rows(Path("runs/one/metrics.jsonl"))
    assert [row["update"] for row in rows] == [1, 2, 3]
    assert unregistered(set(rows[0]) - {"update", "unix_s"}) == []
    assert [row["sft/examples_total"] for row in rows] == [4, 8, 12]
    assert CheckpointStore(Path("runs/one/checkpoints"), keep=2).versions() == [2, 3]
    saved = weights("runs/one/checkpoints/v000003/policy")
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights("model").items())
    again = json.loads(Path("model/recipe.json").read_text())["config"]
    assert (again["run"]["name"], again["resume"]) == ("", ""), "cooked again it is a run of its own"


@pytest.mark.slow
def test_files_that_came_into_out_meanwhile_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    keys = (*QUICK, "run.name=one", "out=out", "run.num_updates=60", "batch_size=32")
    assert run_and_meanwhile(lambda: Path("out", "mine").write_text("mine"), "runs/one", keys) == 1
    assert "expected out=out to be empty still" in capsys.readouterr().err
    assert [path.name for path in Path("out").iterdir()] == ["mine"]
    assert main(["export", "runs/one", "--output", "model"]) == 0


def test_what_a_run_cannot_go_on_with_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*QUICK, "run.num_updates=2", "run.name=one") == 0
    for overrides, sentence in (
        (["resume=runs/one"], "expected updates left to do, got a run that has done 2 of run.num_updates=2"),
        (["resume=runs/one", "run.num_updates=4", "data.max_steps=4"], "run.changes_allowed=[data.max_steps]"),
        (["resume=runs/one", "run.num_updates=4", "model.dtype=bfloat16"], "is how its checkpoints are cut"),
        (["--recipe", "runs/one/model/recipe.json", "resume=runs/one"], "remove --recipe"),
        ([*QUICK, "run.name=one"], "already holds a run"),
        ([*QUICK, "out=runs/one/model"], "expected out=runs/one/model to be new or empty"),
    ):
        capsys.readouterr()
        assert run(*overrides) == 1
        assert sentence in capsys.readouterr().err
    Path("rows.jsonl").write_text(json.dumps({"problem": "2+2", "solution": "4"}) + "\n")
    assert run("model.path=laptop", "data.kind=files", "data.path=rows.jsonl", "data.question_column=q") == 1
    said = capsys.readouterr().err
    assert "expected a column 'q', got 'problem', 'solution'" in said and said.count("\n") == 1
    assert not Path("runs/latest").resolve().name.endswith("-sft"), "no run is begun for it"
    assert main(["train", "resume=runs/one"]) == 1
    assert "is a run of capo-ray sft" in capsys.readouterr().err
    assert run("resume=runs/one", "run.num_updates=4") == 0
    assert len(json.loads(Path("runs/one/model/recipe.json").read_text())["first_losses"]) == 4
