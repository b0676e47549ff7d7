"""Rows are unique per update and survive torn writes; optional trackers and odd terminals never end a run."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from capo_ray.arrays import frozen
from capo_ray.config.credit import CapoConfig
from capo_ray.config.sections import TrackingConfig
from capo_ray.credit import assign_credit
from capo_ray.metrics import (
    FanOut,
    JsonlTracker,
    MlflowTracker,
    Screen,
    TrackioTracker,
    TranscriptWriter,
    WandbTracker,
    build_trackers,
    plot_learning_curve,
    read_rows,
    write_summary,
)
from capo_ray.metrics.pace import Pace
from capo_ray.metrics.page import sparkline
from capo_ray.metrics.plot import _smooth
from capo_ray.protocols import RunFailed
from capo_ray.types import (
    Completion,
    Critique,
    Evidence,
    Group,
    GroupCredit,
    Judged,
    Problem,
    Provenance,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
)
from tests import view_run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def updates(path: Path) -> list[int]:
    return [row["update"] for row in read_rows(path)]


def test_figures_of_one_update_share_one_row(path: Path) -> None:
    tracker = JsonlTracker(path)
    tracker.log({"eval/accuracy_frac": 0.25}, update=0)
    tracker.log({"loss/objective_mean": 1.0 / 3.0}, update=1)
    tracker.log({"loss/objective_mean": 0.5}, update=1)
    assert path.read_bytes().endswith(b"0.5}\n"), "a shorter row must not leave the tail of the longer one"
    tracker.log({"eval/accuracy_frac": 0.75}, update=1)
    tracker.close()
    assert updates(path) == [0, 1]
    assert read_rows(path)[1]["loss/objective_mean"] == 0.5 and read_rows(path)[1]["eval/accuracy_frac"] == 0.75
    reopened = JsonlTracker(path)
    reopened.log({"late": 1.0}, update=1)
    assert updates(path) == [0, 1] and read_rows(path)[1]["late"] == 1.0
    with pytest.raises(ValueError, match=r"update >= 1.*got 0"):
        reopened.log({}, update=0)


def test_a_resumed_run_cuts_away_rows_after_its_checkpoint(path: Path) -> None:
    tracker = JsonlTracker(path)
    for update in range(5):
        tracker.log({"x": float(update)}, update=update)
    resumed = JsonlTracker(path, resume_from=2)
    assert updates(path) == [0, 1, 2]
    resumed.log({"x": 30.0}, update=3)
    assert [row["x"] for row in read_rows(path)] == [0, 1, 2, 30]


def test_a_row_torn_by_a_crash_is_left_out_and_the_next_one_is_whole(path: Path) -> None:
    JsonlTracker(path).log({"x": 1.0}, update=0)
    whole = path.read_bytes()
    for torn in (b'{"update": 1, "x"', b'{"update": 1}', b'"x": 3}\n'):
        path.write_bytes(whole + torn)
        JsonlTracker(path).log({"x": 2.0}, update=1)
        assert [row["x"] for row in read_rows(path)] == [1.0, 2.0]
        assert path.read_bytes().count(b"\n") == 2


def test_a_damaged_row_in_the_middle_is_an_error_with_its_line(path: Path) -> None:
    path.write_text('{"update": 0}\nnoise\n{"update": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl line 2 is not JSON"):
        read_rows(path)


SHORT_OF_ROOM = """
import resource, signal, sys
from pathlib import Path
from capo_ray.metrics.rows import JsonlTracker
from capo_ray.protocols import RunFailed
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for update in 1, 2:
    path = Path(sys.argv[1]) / f"{update}.jsonl"
    tracker = JsonlTracker(path)
    tracker.log({"a/b": 1.0}, update=1)
    size = path.stat().st_size + 20  # a write past it is short, the next one fails
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        tracker.log({"room/quantity_unit": 0.125}, update=update)
    except RunFailed as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def test_a_row_that_finds_no_room_leaves_the_rows_before_it_whole(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SHORT_OF_ROOM, str(tmp_path)]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert len(said) == 2
    for update, sentence in enumerate(said, 1):
        assert f"could not take the row of update {update}: File too large; make room" in sentence
        text = (tmp_path / f"{update}.jsonl").read_text()
        (row,) = [json.loads(line) for line in text.splitlines()]
        assert row["update"] == 1 and row["a/b"] == 1.0 and "\0" not in text


def test_numbers_that_are_not_finite_become_null(path: Path) -> None:
    JsonlTracker(path).log({"a": math.nan, "b": math.inf, "c": 1}, update=0)
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    assert [read_rows(path)[0][name] for name in "abc"] == [None, None, 1]
    write_summary(path.with_name("summary.json"), {"a": math.nan, "b": [{"c": -math.inf}], "d": "x"})
    assert json.loads(path.with_name("summary.json").read_text()) == {"a": None, "b": [{"c": None}], "d": "x"}


class Recorder:
    """A tracker that keeps what it gets, and fails from its `fail_at`-th call on."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self.num_calls = 0
        self.fail_at = fail_at

    def log(self, metrics: Mapping[str, float], *, update: int) -> None:
        self.num_calls += 1
        if self.fail_at is not None and self.num_calls >= self.fail_at:
            raise ConnectionError("service unavailable")
        self.rows.append({**metrics, "update": update})

    def show(self, line: Mapping[str, Any]) -> None:
        self.rows.append({"shown": line["update"]})

    def close(self) -> None:
        self.log({"closed": 1.0}, update=-1)


def test_an_optional_tracker_that_fails_is_reported_once_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    record, good, bad = Recorder(), Recorder(), Recorder(fail_at=2)
    trackers = FanOut(record, {"good": good, "bad": bad})
    for update in range(4):
        trackers.log({"x": 1.0}, update=update)
    trackers.close()
    assert [row["update"] for row in good.rows] == [0, 1, 2, 3, -1]
    assert bad.num_calls == 2 and trackers.num_dropped == 1
    assert [row.get("metrics/dropped_trackers") for row in record.rows[:4]] == [None, None, 1.0, 1.0]
    assert len(caplog.records) == 1 and "tracker bad failed (ConnectionError: service unavailable)" in caplog.text


def test_an_error_of_the_record_is_the_runs_error() -> None:
    with pytest.raises(ConnectionError):
        FanOut(Recorder(fail_at=1), {}).log({}, update=0)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_tracker_whose_package_is_missing_is_refused_with_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunFailed, match=rf"tracking\.{name}=true needs the package {name}.*tracking\.{name}=false"):
        build_trackers(TrackingConfig(tensorboard=False, **{name: True}), tmp_path, {})


class FakeService(types.ModuleType):
    """Stands for wandb, mlflow and trackio: keeps every call by name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: object, **more: object) -> FakeService:
            self.calls.append((name, args, more))
            return self

        return call


def test_wandb_gets_config_and_finite_figures_and_goes_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService("wandb")
    monkeypatch.setitem(sys.modules, "wandb", service)
    tracker = WandbTracker("project", tmp_path / "run7", {"a": {"b": 1}}, resumed=True)
    tracker.log({"x": 1.0, "y": math.nan}, update=3)
    tracker.close()
    (_, _, init), *rest = service.calls
    assert init["id"] == init["name"] == "run7" and init["resume"] == "allow" and init["config"] == {"a": {"b": 1}}
    assert rest == [("log", ({"x": 1.0},), {"step": 3}), ("finish", (), {})]


def test_trackio_gets_flat_settings_and_finite_figures_and_goes_on_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = FakeService("trackio")
    monkeypatch.setitem(sys.modules, "trackio", service)
    tracker = TrackioTracker("project", tmp_path / "run7", {"a": {"b": 1}}, resumed=True)
    tracker.log({"x": 1.0, "y": math.nan}, update=3)
    tracker.close()
    (_, _, init), *rest = service.calls
    assert init["name"] == "run7" and init["resume"] == "allow" and init["config"] == {"a.b": 1}
    assert rest == [("log", ({"x": 1.0},), {"step": 3}), ("finish", (), {})]


def test_mlflow_gets_flat_parameters_and_finite_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", service)
    tracker = MlflowTracker("project", tmp_path, {"a": {"b": 1}, "c": "x" * 999})
    tracker.log({"x": 1.0, "y": math.inf}, update=3)
    params = next(args[0] for name, args, _ in service.calls if name == "log_params")
    assert params == {"a.b": "1", "c": "x" * 250}
    assert service.calls[-1] == ("log_metrics", ({"x": 1.0},), {"step": 3})


def test_tensorboard_events_hold_the_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = build_trackers(TrackingConfig(), tmp_path, {})
    for update in (1, 2, 3):
        trackers.log({"eval/accuracy_frac": update / 4, "nothing": math.nan}, update=update)
    trackers.close()
    resumed = build_trackers(TrackingConfig(), tmp_path, {}, resume_from=1)
    resumed.log({"eval/accuracy_frac": 0.875}, update=2)
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/accuracy_frac")] == [(1, 0.25), (2, 0.875)]
    assert events.Tags()["scalars"] == ["eval/accuracy_frac"]
    assert updates(tmp_path / "metrics.jsonl") == [1, 2]


def test_tensorboard_shows_transcripts_as_text_that_is_not_believed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = build_trackers(TrackingConfig(), tmp_path, {})
    writer = TranscriptWriter(tmp_path / "transcripts.jsonl", None, trackers.show)
    group = view_run.one_group(2, view_run.HOSTILE)
    writer.write_group(4, group, assign_credit(group, CapoConfig(), 0.0))
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("transcripts")
    (text,) = event.tensor_proto.string_val
    lines = text.decode().splitlines()
    assert event.step == 4 and lines[0] == "**question, of update 4**" and "**wrong** (3 critiques)" in lines
    table = [[cell.strip() for cell in one.strip("|").split("|")] for one in lines if one.startswith("|")]
    assert table[0] == ["response", "verdict", "steps", "held wrong", "critiques", "advantage"] and len(table) == 6
    assert table[2][:5] == ["1", "right", "3", "0", "3"] and table[5][:5] == ["4", "wrong", "3", "1", "3"]
    assert float(table[2][5]) > 0 > float(table[5][5])
    assert any(line.startswith("    wrong 1.00  -") and line.endswith("2+2=5") for line in lines)
    assert all(line.startswith("    ") for line in lines if "<img" in line) and "\u202e" not in text.decode()


def one_group() -> tuple[Group, GroupCredit]:
    key = TrajectoryKey("p1", 3, 0)
    response = Completion((5, 6), (-0.1, -0.2), (1, 2), "ab", (VersionRun(0, 2),), "stop")
    critique = Critique(frozenset({1, 0}), False, "raw <text>", "ok", Provenance("critic", "hash", 0))
    silent = Critique(None, None, "???", "no verdict", Provenance("critic", "hash", 1))
    member = Judged(
        Trajectory(key, (1,), response),
        Verdict(0, "wrong", "4"),
        ((0, 1), (1, 2)),
        Evidence(critiques=(critique, silent)),
    )
    credit = GroupCredit(((0.5, -0.5),), ((0.0, -1.0),), ((0.0, 1.0),), (1,), (True,))
    return Group(3, Problem("p1", "what?", "5"), (member,)), credit


def test_a_transcript_shows_what_was_written_what_was_judged_and_what_each_token_got(tmp_path: Path) -> None:
    path = tmp_path / "transcripts.jsonl"
    writer = TranscriptWriter(path)
    group, credit = one_group()
    told = {group.members[0].trajectory.key: {"policy_logprobs": frozen((-0.5, -0.25), np.float32)}}
    writer.write_group(5, group, credit, told)
    writer.write_group(10, group, credit)
    line = read_rows(path)[0]
    assert path.read_bytes().startswith(b'{"head": {"update": 5, ')
    assert line["head"]["rewards"] == [0] and line["head"]["flagged_steps"] == 2 and line["head"]["split_steps"] == 0
    assert line["head"]["against_verifier"] == 0 and line["update"] == 5 and line["question"] == "what?"
    assert line["prompt_tokens"] == 1
    (response,) = line["responses"]
    assert response["policy_logprobs"] == [-0.5, -0.25]
    assert "policy_logprobs" not in read_rows(path)[1]["responses"][0]
    assert response["text"] == "ab" and response["tokens"] == ["a", "b"] and response["steps"] == [[0, 1], [1, 2]]
    assert (response["reward"], response["reason"], response["extracted"]) == (0, "wrong", "4")
    assert response["flagged"] == [[0, 1], None] and response["votes"][0]["text"] == "raw <text>"
    credit = response["credit"]
    assert credit["advantages"] == [0.5, -0.5] and credit["token_rewards"] == [0.0, -1.0]
    assert credit["step_weights"] == [0.0, 1.0] and credit["included"] is True
    TranscriptWriter(path, resume_from=7)
    assert updates(path) == [5]


@pytest.mark.slow
def test_a_curve_is_drawn_whatever_figures_there_are(path: Path, tmp_path: Path) -> None:
    tracker = JsonlTracker(path)
    for update in range(3):
        tracker.log({"rollout/reward_mean": 0.3, "eval/accuracy_frac": math.nan}, update=update)
    plot_learning_curve(path, tmp_path / "a.png", "no critic")
    band = {"eval/accuracy_low_frac": 0.4, "eval/accuracy_high_frac": 0.6, "eval/greedy_accuracy_frac": 0.7}
    tracker.log({"critic/agreement_frac": 1.0, "eval/accuracy_frac": 0.5} | band, update=3)
    plot_learning_curve(path, tmp_path / "b.png", "with $ critic")
    plot_learning_curve(tmp_path / "missing.jsonl", tmp_path / "c.png", "nothing yet")
    assert all((tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in "abc")


def test_a_running_mean_does_not_look_ahead() -> None:
    assert _smooth([1.0, 0.0, 0.0, 0.0, 0.0, 6.0]) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 6 / 5])


def test_a_log_gets_plain_lines_now_and_then() -> None:
    stream = io.StringIO()
    with Screen("title", num_updates=20, stream=stream, every_s=1e9) as screen:
        screen.update(phase="starting")
        for update in range(1, 11):
            screen.update(phase="rollout", queues={"finished": 3})
            screen.update(update=update, reward=0.5, agreement=None, held_out=0.6 if update == 10 else None)
        screen.final_table({"final accuracy": 0.875, "run": "runs/x"})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5, lines
    assert "update 0/20  starting" in lines[0] and "\x1b" not in stream.getvalue()
    assert "update 10/20  rollout  reward=0.500  held_out=0.600  finished=3  left 0:" in lines[2]
    assert lines[3:] == ["final accuracy  0.875", "run             runs/x"]


class BrokenTerminal(io.StringIO):
    """A terminal that cannot be written to."""

    error: OSError = BrokenPipeError("the reader is gone")

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError("the reader is gone"), OSError("input/output error")])
def test_a_broken_terminal_does_not_end_the_run(error: OSError) -> None:
    stream = BrokenTerminal()
    stream.error = error
    with Screen("title", num_updates=2, stream=stream) as screen:
        for update in (1, 2):
            screen.update(update=update, held_out=0.5, phase="rollout")
        screen.final_table({"a": 1})


def test_a_terminal_without_our_characters_shows_others() -> None:
    raw = io.BytesIO()
    screen = Screen("Größe · ▁", num_updates=2, stream=io.TextIOWrapper(raw, encoding="ascii"))
    screen.update(phase="größer", held_out=0.5)
    screen._console.file.flush()
    assert b"gr??er" in raw.getvalue()


def test_the_live_page_shows_progress_pace_and_queues() -> None:
    screen = Screen("a run", num_updates=4)
    screen.update(phase="rollout", update=1, reward=0.25, queues={"finished": 3})
    screen.update(update=2, held_out=0.75, agreement=0.9)
    console = Console(file=io.StringIO(), width=90, force_terminal=False)
    console.print(screen._page())
    page = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("a run", "rollout", "2/4 updates", "held-out accuracy", "0.750", "0.900", "finished 3", "left 0:00"):
        assert text in page, page
    assert sparkline([0.0, 0.5, 1.0, math.nan]) == "▁▅█ "


def test_the_last_page_of_a_run_stays_on_the_terminal_above_the_closing_table() -> None:
    stream = Terminal()
    with Screen("a run", num_updates=2, stream=stream) as screen:
        screen.update(phase="rollout", update=1, held_out=0.25)
        screen.update(phase="summary", update=2, held_out=0.75)
        screen.final_table({"updates": 2})
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).rpartition("╭")[2]
    for text in ("│ done ", "2/2 updates", "held-out accuracy  0.750", "updates  2"):
        assert text in last, last
    assert "left" not in last
    assert not re.search(r"\x1b\[(\d*A|2K)", stream.getvalue().rpartition("╭")[2]), "nothing goes back over it"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_page_shows_the_last_judged_response_and_believes_nothing_of_it() -> None:
    screen = Screen("a run", num_updates=4)
    steps = [(f"{k}+1 = {k + 1}\n", 0.0) for k in range(9)]
    steps[7] = ("7+1 = 9 \x1b[31m[bold]\u202e\n", 0.75)
    screen.update(update=1, precision=0.5, judged={"question": "q?\n", "verdict": "wrong", "steps": steps})
    screen.update(update=2, idle={"engines": 0.25, "learner": 0.5})
    screen.update(update=3, idle={"learner": 0.0})  # the engines have not told anew
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(screen._page())
    page = console.file.getvalue()  # type: ignore[attr-defined]
    assert "last judged  q?  wrong" in page and "✗ 7  7+1 = 9 \\x1b[31m[bold]\\u202e  wrong 0.75" in page
    assert "  6  6+1 = 7" in page and " 0  0+1" not in page, "the flagged step stands among those shown"
    for text in ("idle", "engines 25%  learner 0%", "critic precision", "0.500"):
        assert text in page
    screen.update(judged={"question": "", "verdict": "right", "steps": []})
    console.print(screen._page())
    assert "right" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_time_left_is_a_range_that_counts_the_last_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("capo_ray.metrics.pace.time.monotonic", lambda: now)
    pace = Pace()
    for update, seconds in enumerate([0.0, 10.0, 10.0, 10.0]):
        now += seconds
        pace.ended(update)
    assert pace.left_s(7) == (40.0, 40.0), "four more of ten seconds each"
    now += 4.0
    assert pace.left_s(7) == (36.0, 36.0)
    pace.entered("evaluation")
    now += 3.0
    pace.entered("publish")
    now += 5.0
    pace.ended(4)  # after 12 s: a mean of 10.5, a spread of 1
    assert pace.left_s(8) == pytest.approx((42 - 1.3 * math.sqrt(8), 42 + 1.3 * math.sqrt(8) + 3))
    assert Pace().left_s(8) is None
