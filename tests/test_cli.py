"""The command line: help at once, one sentence per failure, exit codes."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import capo_ray
from capo_ray import cli
from capo_ray.checkpoint import CheckpointStore, read_settings, write_settings
from capo_ray.cli import doctor, main, models
from capo_ray.cli.model_card import card_of
from capo_ray.protocols import PartTimeout, RunFailed, RunStopped
from capo_ray.types import WrittenFile
from scripts.pages.configuration import build_reference
from tests.fakes import written
from tests.model_files import write_model
from tests.view_run import make_run

ROOT = Path(capo_ray.__file__).parent.parent


@pytest.fixture
def fake_command(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command `train` whose run does what the test puts there."""
    module = types.ModuleType("capo_ray.cli.train")
    module.HELP = "fake"  # type: ignore[attr-defined]
    module.configure = lambda parser: parser.add_argument("words", nargs="*")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "capo_ray.cli.train", module)
    return module


def raising(error: BaseException) -> object:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_help_lists_every_command_with_an_example_and_imports_none_of_them() -> None:
    code = (
        "import sys, capo_ray.cli as c; c.main(['--help']);"
        "print([m for m in ('torch', 'ray', 'hydra', 'pydantic', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout
        assert cli.COMMANDS[name][1] in done.stdout


def test_every_command_has_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("usage: ")
        assert "capo-ray " + name in out


def test_no_command_is_wrong_usage_and_an_unknown_one_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 2
    assert main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_a_failed_run_is_one_sentence_and_exit_code_one(
    fake_command: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command.run = raising(RunFailed("expected a, got b; do c"))  # type: ignore[attr-defined]
    assert main(["train"]) == 1
    assert capsys.readouterr().err == "capo-ray train: expected a, got b; do c\n"


def test_an_ended_run_says_how_to_go_on_by_its_real_path(
    fake_command: types.ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints" / "v000003").mkdir(parents=True)
    failed = RunFailed("learner rank 1 was lost")
    failed.add_note("no checkpoint of version 5 could be saved: PartLost()")
    endings: list[tuple[BaseException, int, str]] = [
        (KeyboardInterrupt(), 130, "interrupted (Ctrl-C)"),
        (asyncio.CancelledError(), 143, "asked to end (SIGTERM)"),
        (RunStopped("version 5 is saved", signal.SIGINT), 130, "interrupted (Ctrl-C); ended: version 5 is saved"),
        (RunStopped("version 5 is saved", signal.SIGTERM), 143, "asked to end (SIGTERM); ended: version 5 is saved"),
        (failed, 1, "learner rank 1 was lost; no checkpoint of version 5 could be saved"),
        (ZeroDivisionError("a defect"), 1, "ZeroDivisionError: a defect"),
    ]
    for error, code, sentence in endings:
        error.run_dir = tmp_path  # type: ignore[attr-defined]
        fake_command.run = raising(error)  # type: ignore[attr-defined]
        assert main(["train"]) == code
        said = capsys.readouterr().err
        assert sentence in said and said.endswith(f"; go on with capo-ray train resume={tmp_path}\n")


def test_a_run_that_ended_before_its_first_checkpoint_says_how_to_begin_again(
    fake_command: types.ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = RunFailed("the critics are gone")
    error.run_dir = tmp_path  # type: ignore[attr-defined]
    fake_command.run = raising(error)  # type: ignore[attr-defined]
    assert main(["train"]) == 1
    assert f"begin again with capo-ray train resume={tmp_path} run.from_zero=true" in capsys.readouterr().err


def test_a_printed_cause_is_a_real_one(fake_command: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    error = PartTimeout("rollout worker 0 (generate) did not answer within 300 s")
    error.__cause__ = TimeoutError()
    error.__cause__.__cause__ = asyncio.CancelledError()
    fake_command.run = raising(error)  # type: ignore[attr-defined]
    assert main(["train"]) == 1
    said = capsys.readouterr().err
    assert "PartTimeout: rollout worker 0 (generate) did not answer" in said and "CancelledError" not in said


def test_an_unexpected_error_leaves_its_traceback_in_the_run_and_its_cause_on_the_screen(
    fake_command: types.ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = OSError("disk is full")
    error.run_dir = tmp_path  # type: ignore[attr-defined]
    group = BaseExceptionGroup("loops", [error])
    group.run_dir = tmp_path  # type: ignore[attr-defined]
    fake_command.run = raising(group)  # type: ignore[attr-defined]
    assert main(["train"]) == 1
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    assert "OSError: disk is full" in sentence
    assert "Traceback" in (tmp_path / "error.txt").read_text()


def test_options_may_stand_between_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "credit=grpo", "--dry-run", "run.num_updates=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["run"]["num_updates"] == 3


def test_a_refused_override_ends_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "credit.vot=union"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


STOPPED = """--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "105"}}'"""
"""`ray job stop` waits for run.stop_grace_s and 45 s of closing, where Ray's own default is 3 s."""


def test_submit_prints_a_line_that_a_shell_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "--address", "http://127.0.0.1:8265", "--print", "credit=grpo", "run.name=a b"]
    assert main(words) == 0
    expected = f"ray job submit --address http://127.0.0.1:8265 {STOPPED} -- python -m capo_ray train credit=grpo "
    assert capsys.readouterr().out == f"{expected}'run.name=a b'\n"
    assert main(["submit", "--print", "--working-dir", ".", "run.dir=/runs", "run.stop_grace_s=200.5"]) == 0
    words = shlex.split(capsys.readouterr().out)
    told = json.loads(words[words.index("--runtime-env-json") + 1])
    assert told["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "246"} and ".git" in told["excludes"]


WITHOUT_JSON = {"verify": "writes JSON lines and nothing else"}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_can_say_what_it_found_as_json(name: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(cli.COMMANDS[name][0]).configure(parser)
    assert ("--json" in parser.format_help()) != (name in WITHOUT_JSON)


def test_submit_says_as_json_what_it_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ray").write_text("#!/bin/sh\necho a log\nexit 3\n")
    (tmp_path / "ray").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert main(["submit", "--json", "--submission-id", "own", "credit=grpo"]) == 3
    said = capfd.readouterr()
    line = f"ray job submit --submission-id own {STOPPED} -- python -m capo_ray train credit=grpo"
    told = {"command": line, "address": "", "submission_id": "own", "waited": True, "exit_code": 3}
    assert json.loads(said.out) == told and said.err == f"{line}\na log\n"
    assert main(["submit", "--json", "--print", "credit=grpo"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert f"--submission-id {told['submission_id']} --" in told["command"] and told["exit_code"] is None


def test_submit_to_an_address_where_nobody_answers_says_so_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--address", "http://127.0.0.1:9"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("capo-ray submit: --address: expected an answer at 127.0.0.1:9") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--credit grpo", "--credit; settings have no dashes: credit=VALUE\n"),
        ("--multirun credit=capo,grpo", "--multirun; a command is one run: call it for each, as `for s in 0 1 2; do "),
        ("-m", "-m; a command is one run: "),
        ("--cfg job", "--cfg; --dry-run=full prints the configuration\n"),
        ("-x", "-x\n"),
    ],
)
def test_an_option_of_other_programs_is_answered_with_what_stands_in_its_place(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli._parse("train", importlib.import_module("capo_ray.cli.train"), words.split())
    assert f"unrecognized arguments: {said}" in capsys.readouterr().err


def test_what_is_given_twice_or_set_by_an_experiment_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    twice = ["experiment=novice", "credit=capo", "credit=grpo", "learner.lr=1e-5", "learner.lr=1e-4"]
    assert main(["train", "--dry-run", "--json", *twice]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["config"]["learner"]["lr"] == 1e-4
    assert said.err.splitlines() == [
        "capo-ray train: credit is given 2 times; credit=grpo counts",
        "capo-ray train: learner.lr is given 2 times; learner.lr=1e-4 counts",
        "capo-ray train: experiment=novice, not credit=grpo, sets loss.kl_coef=0.0 (not 0.04), learner.num_epochs=3 "
        "(not 1); give a key itself for another value",
    ]


def test_submit_checks_the_overrides_here_and_keeps_results_out_of_a_temporary_copy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["submit", "--print", "credit=grpoo"]) == 1
    assert main(["submit", "--print", "--working-dir", "."]) == 1
    assert "run.dir must be absolute" in capsys.readouterr().err
    assert main(["submit", "--print", "--working-dir", ".", "run.dir=/shared/runs"]) == 0
    capsys.readouterr()
    assert main(["submit", "--print", "cluster=own"]) == 1
    assert "joins the cluster that it is submitted to" in capsys.readouterr().err


def test_export_copies_a_verified_policy_and_refuses_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=2)
    draft = store.begin(3, ["learner", "policy"])
    write_model(draft.directory / "policy")
    for file in (draft.directory / "policy").iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        draft.add("policy", [WrittenFile(file.name, file.stat().st_size, digest)])
    adapter = ["adapter_model.safetensors", "adapter_model.json"]
    draft.add("learner", [written(draft.directory / "learner" / name, name) for name in adapter])
    store.seal(draft)
    output = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "lora"), "--adapter"]) == 0
    assert "version 3, adapters of the policy, 2 files" in capsys.readouterr().out
    assert {path.name: path.read_text() for path in (tmp_path / "lora").iterdir()} == {
        "adapter_model.safetensors": adapter[0],
        "adapter_config.json": adapter[1],
    }
    assert main(["export", str(tmp_path / "run"), "--output", str(output), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["version"], report["parameters"]) == (3, 12)
    assert sorted(path.name for path in output.iterdir()) == report["files"]
    assert main(["export", str(tmp_path / "run"), "--output", str(output)]) == 1
    assert "already exists" in capsys.readouterr().err
    weights = tmp_path / "run" / "checkpoints" / "v000003" / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "b"), "--checkpoint", "3"]) == 1
    assert "another sha256" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_an_exported_policy_has_a_card_that_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one", updates=3, vote="union")
    settings = read_settings(run / "config.yaml")
    settings["model"]["path"] = "/home/somebody/models/own"
    settings["model"]["system_prompt"] = "Think."
    write_settings(run / "config.yaml", settings)
    told = {"updates": 3, "accuracy_is": "sampled at temperature 1", "initial_accuracy": 0.25, "final_accuracy": 0.75}
    (run / "summary.json").write_text(json.dumps(told | {"final_accuracy_ci95": [0.7, 0.8]}))
    card = card_of(run, 3)
    assert card.startswith("---\nlibrary_name: transformers\n") and "base_model" not in card
    made = ["# one, version 3", "`own` after 3 updates", "`credit=capo`", "| sampled | 0.250 | 0.750 [0.700, 0.800] |"]
    for words in [*made, "system_prompt: Think.", 'credit.vote="union"', 'model.path="own"']:
        assert words in card, card
    assert "/home" not in card and str(tmp_path) not in card
    assert "| sampled |" not in card_of(run, 2), "the accuracy is that of another version"
    assert card_of(tmp_path, 3) == ""


def test_export_of_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert "expected a run directory with checkpoints/" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["export r", "report r", "synthesize --topics t", "critique --input -"])
def test_a_command_writes_to_no_address(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), "--output", "s3://bucket/place"]) == 2
    assert "expected a path on a file system that is mounted, got the address s3://" in capsys.readouterr().err


def test_model_facts_come_from_files_alone(tmp_path: Path) -> None:
    facts = models.read_facts(write_model(tmp_path / "m", vocab=7, tokens=5), "model.path")
    assert (facts.num_params, facts.vocab, facts.max_token_id) == (12, 7, 4)


def test_doctor_finds_this_environment_fit_and_never_prints_the_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-very-secret-token")
    main(["doctor", "--json"])
    out = capsys.readouterr().out
    report = {finding["what"]: finding for finding in json.loads(out)["findings"]}
    assert report["python"]["status"] == report["ray"]["status"] == "ok"
    assert report["ray token"]["text"] == "from RAY_AUTH_TOKEN"
    assert "a-very-secret-token" not in out


def test_doctor_exits_with_one_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "available_bytes", lambda: 1 << 30)
    assert main(["doctor"]) == 1
    assert "1.0 GiB free (the default run wants about 5)" in capsys.readouterr().out


def test_doctor_only_notes_that_there_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    main(["doctor", "--json"])
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["g++"]["status"] == "note"


def test_the_configuration_page_is_what_the_models_say() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == build_reference(), "docs/configuration.md is out of date: run make docs"
