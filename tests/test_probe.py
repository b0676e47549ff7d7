"""`--dry-run --check`: what a plan names is tried out, nothing starts, and what would fail is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from capo_ray.cli import main
from capo_ray.cli.compose import compose_train
from capo_ray.cli.probe import probe
from tests.model_files import write_model
from tests.view_run import make_run


class Judge(BaseHTTPRequestHandler):
    """Says that the second step is wrong, in the compact form, which counts from 0; or what `words` says."""

    words = "Judgement: No\n<incorrect_steps><step_1></incorrect_steps>"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"message": {"content": type(self).words}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        told = json.dumps({"choices": [choice] * body.get("n", 1), "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"critic.endpoint.base_url=http://127.0.0.1:{server.server_port}/v1"
    yield ["critic=endpoint", url, "critic.endpoint.model=adder", "critic.rubric=compact", "critic.num_votes=2"]
    server.shutdown()
    server.server_close()


def found(*words: str, price: float | None = None) -> dict[str, tuple[str, str]]:
    """State and words of the last probe of each kind."""
    return {one.what: (one.state, one.words) for one in probe(compose_train(words), price)}


def test_a_judge_behind_an_api_is_asked_and_timed(endpoint: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    state, words = found(*endpoint)["judge"]
    assert state == "ok" and "2 of 2 critiques read after 0." in words and "2 of them found the wrong step" in words
    monkeypatch.setattr(Judge, "words", "I cannot say.")
    state, words = found(*endpoint)["judge"]
    assert state == "bad" and "none of 2 critiques could be read" in words


def test_a_check_starts_nothing_and_ends_with_one_where_the_judge_is_of_no_use(
    endpoint: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["train", "--dry-run", "--check", "--json", f"run.dir={tmp_path}", *endpoint]) == 0
    probes = json.loads(capsys.readouterr().out)["probes"]
    kinds = {one["what"] for one in probes}
    assert kinds == {"models", "judge", "disk", "/dev/shm", "ports", "cost"} and not list(tmp_path.iterdir())
    monkeypatch.setattr(Judge, "words", "")
    assert main(["train", "--dry-run", "--check", f"run.dir={tmp_path}", *endpoint]) == 1
    assert "bad  judge     adder at http://127.0.0.1" in capsys.readouterr().out


def test_models_are_read_and_one_that_cannot_be_is_told(tmp_path: Path) -> None:
    probes = probe(compose_train(["credit=grpo"]), None)
    assert [one.state for one in probes if one.what == "models"] == ["ok", "ok"]
    folder = write_model(tmp_path / "model")  # its tokenizer is none that transformers could use
    state, words = found("credit=grpo", f"model={folder}")["models"]
    assert state == "bad" and words


def test_the_cost_is_by_rates_or_by_the_resumed_runs_own_seconds(tmp_path: Path) -> None:
    plan = ["experiment=paper_1_5b", "data=math", "data.path=math.jsonl"]
    state, words = found(*plan, price=2.0)["cost"]
    hours, money = (float(words.split(text)[0].split()[-1].replace(",", "")) for text in (" GPU-hours", " at 2 an"))
    assert state == "ok" and money == pytest.approx(2 * hours, abs=0.2) and "on 8 GPUs" in words
    run = make_run(tmp_path / "run", updates=2)
    row = {"time/wait_for_batch_s": 1.0, "time/update_s": 2.0, "time/publish_s": 0.6}
    (run / "metrics.jsonl").write_text("".join(json.dumps({"update": n, **row}) + "\n" for n in (1, 2)))
    assert found(f"resume={run}")["cost"][1] == "100 updates take 0.10 h by the last 2 of the run (without evaluations)"
    assert found("credit=grpo")["cost"][0] == "note"


def test_a_disk_that_cannot_hold_the_checkpoints_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ["model=qwen2_5_7b", "engine=gpu", "learner=gpu", "credit=grpo", "run.keep_checkpoints=100000"]
    state, words = found(*plan)["disk"]
    assert state == "bad" and "run.keep_checkpoints=100000" in words


def test_what_belongs_to_a_dry_run_is_refused_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--check"], ["--price", "2"]):
        assert main(["train", *words]) == 1
        assert "--check and --price belong to --dry-run" in capsys.readouterr().err
