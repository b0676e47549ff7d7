"""The page of a run: who may see it, what it shows, and that nothing of a response becomes markup."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from starlette.testclient import TestClient

from capo_ray.cli import main
from capo_ray.ledger import SqliteLedger, read_balance
from capo_ray.ledger.lives import read_lives
from capo_ray.runs.reading import NoRun, Run
from capo_ray.view.comparing import compare
from capo_ray.view.figures import choose, flow_page
from capo_ray.view.kinds import kind_of
from capo_ray.view.report import build_report
from capo_ray.view.server import build_app
from capo_ray.work import Work
from tests.view_run import HOSTILE, make_run

TOKEN = "a-token"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture
def client(run_dir: Path) -> TestClient:
    app = build_app([Run(run_dir)], TOKEN)
    return TestClient(app, headers={"Authorization": f"Bearer {TOKEN}"})


@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/events", "/api/runs/0/groups/0", "/nowhere"])
@pytest.mark.parametrize("token", ["", "?token=", "?token=another", "?token=%C3%A9"])
def test_without_the_token_nothing_is_served(run_dir: Path, path: str, token: str) -> None:
    answer = TestClient(build_app([Run(run_dir)], TOKEN)).get(path + token)
    assert answer.status_code == 401 and "capo-ray view" in answer.text


def test_the_address_gives_a_cookie_that_what_follows_is_asked_with(run_dir: Path) -> None:
    visitor = TestClient(build_app([Run(run_dir)], TOKEN))
    first = visitor.get(f"/?token={TOKEN}")
    assert first.status_code == 200 and "HttpOnly" in first.headers["set-cookie"]
    assert "samesite=strict" in first.headers["set-cookie"].lower()
    assert visitor.get("/api/runs").json()[0]["name"] == "one"


def test_the_document_loads_nothing_and_runs_its_own_script_alone(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)
    assert nonce and "default-src 'none'" in policy and "unsafe" not in policy
    assert page.text.count(f'nonce="{nonce[1]}"') == 2  # style and script
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page.text)
    assert "innerHTML" not in page.text and "eval(" not in page.text


def test_groups_are_listed_filtered_sorted_and_found_by_words(client: TestClient) -> None:
    def listed(**params: object) -> list[int]:
        return [g["index"] for g in client.get("/api/runs/0/groups", params=params).json()["groups"]]

    assert listed() == [5, 4, 3, 2, 1, 0]
    assert listed(filter="mixed", limit=2, offset=1) == [4, 3] and listed(filter="wrong") == []
    assert listed(update=3) == [2] and listed(find="QUESTION 4") == [3] and listed(find="question flagged") == []
    assert client.get("/api/runs/0/groups", params={"sort": "beauty"}).json()["error"].startswith("expected sort")
    assert client.get("/api/runs/0/groups", params={"update": "x"}).status_code == 404
    assert client.get("/api/runs/0/groups/99").status_code == 404 and client.get("/api/runs/7/flow").status_code == 404


def test_a_group_holds_what_was_written_judged_and_credited(client: TestClient) -> None:
    line = client.get("/api/runs/0/groups/2").json()
    assert line["head"]["split_steps"] == 1 and line["head"]["against_verifier"] == 0
    last = line["responses"][-1]
    assert last["flagged"] == [[], [1], [1]] and last["versions"] == [[3, 6]] and last["reward"] == 0
    assert "".join(last["tokens"]) == last["text"] and last["credit"]["step_weights"] == [0, 1, 0]


@pytest.mark.parametrize("method, words", [("capo", ["credit.vote=union"]), ("grpo", []), ("dr_grpo", [])])
def test_what_if_says_what_capo_ray_credit_says(
    client: TestClient, run_dir: Path, method: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = client.get("/api/runs/0/groups/2/credit", params={"method": method, "set": " ".join(words)}).json()
    progress = str((3 - 1) / 6)
    assert (
        main(
            ["credit", method, "--input", str(run_dir / "transcripts.jsonl"), "--json", "--progress", progress, *words]
        )
        == 0
    )
    line = json.loads(capsys.readouterr().out.splitlines()[2])
    assert told == line


def test_what_if_of_the_run_s_own_method_is_the_credit_it_trained_with(tmp_path: Path) -> None:
    run = Run(make_run(tmp_path / "own", w_process=0.5, vote="union"))
    client = TestClient(build_app([run], TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})
    told = client.get("/api/runs/0/groups/1/credit", params={"method": "capo"}).json()
    trained = [response["credit"] for response in run.group(1)["responses"]]
    assert [r["advantages"] for r in told["responses"]] == [c["advantages"] for c in trained]
    assert [r["wrong"] for r in told["responses"]] == [c["step_weights"] for c in trained]


def test_a_method_whose_evidence_was_not_kept_is_refused_in_words(client: TestClient) -> None:
    for method, word in (
        ("mig", "answer_logprobs"),
        ("vineppo", "step_values"),
        ("nonsense", "expected a credit method"),
    ):
        assert word in client.get("/api/runs/0/groups/0/credit", params={"method": method}).json()["refused"]
    told = client.get("/api/runs/0/groups/0/credit", params={"method": "capo", "set": "credit.vot=union"}).json()
    assert "did you mean credit.vote?" in told["refused"]


def test_flow_and_critic_tell_lives_and_examples(client: TestClient) -> None:
    flow = client.get("/api/runs/0/flow").json()
    assert flow["update"] == 6 and flow["counts"] == {"trained": 24} and flow["balanced"]
    assert [g["group"] for g in flow["groups"]] == [4, 5, 6]  # trained within two updates of the newest
    assert list(flow["groups"][0]["times"]) == ["generated", "verified", "critiqued", "credited", "trained"]
    lanes = {f"{lane['tier']} {lane['actor']}": lane for lane in flow["actors"]}
    assert list(lanes) == ["rollout 0", "rollout 1", "verifier 0", "critic 0", "learner 0"]
    start = flow["groups"][0]["born"]

    def told(who: str, kind: str) -> list[list[Any]]:
        return [[round(a - start, 1), round(b - start, 1), *rest] for a, b, *rest in lanes[who][kind]]

    # The third group was trained while the fourth was begun: who worked in this time is shown whomever it worked for.
    assert told("learner 0", "works")[:2] == [[0.0, 0.2, 3, ""], [1.0, 1.2, 4, ""]]
    assert told("learner 0", "waits") == [[n + 0.2, n + 1.0, "critic 0", 4 + n] for n in (0, 1, 2)]
    assert told("verifier 0", "waits") == [[0.6, 1.5, "rollout 1", 5], [1.6, 2.5, "rollout 0", 6]]
    assert told("rollout 0", "waits") == [[0.5, 2.0, "a new group", 6]]
    assert told("rollout 1", "waits")[0] == [0.3, 1.0, "a new group", 5]
    assert (
        told("rollout 1", "works")[0] == [0.2, 0.3, None, "publish"] and round(lanes["learner 0"]["idle_s"], 1) == 2.4
    )
    critic = client.get("/api/runs/0/critic").json()
    assert critic["facts"]["step recall of one vote"] == 0.5 and len(critic["split"]) == 6
    # Of 6 groups of 4 siblings with the same steps, two of three votes flag the second step of the last.
    (kind,) = critic["kinds"]
    assert (kind["kind"], kind["judged"], kind["wrong"]) == ("#+#=#", 48, 6)
    assert kind["example"] == {"group": 5, "sample": 3, "step": 1}


def test_a_kind_of_steps_is_its_words_without_the_numbers() -> None:
    assert kind_of("So 1,250.5 apples\n are 3 more than 2.") == "So # apples are # more than #."
    assert kind_of("one two three four five six seven eight nine") == "one two three four five six seven eight"


def test_a_ledger_is_read_where_nothing_can_be_written_beside_it(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", updates=2) / "ledger.sqlite"
    for name in ("ledger.sqlite-shm", "ledger.sqlite-wal"):
        path.with_name(name).unlink(missing_ok=True)
    path.with_name("ledger.sqlite-shm").mkdir()  # SQLite finds no place for its file, as on a read-only disk
    assert read_lives(path, None).counts == {"trained": 8}
    assert read_balance(path).balanced
    path.write_bytes(b"no ledger at all, whatever its name says" * 20)
    with pytest.raises(ValueError, match="cannot be read as a ledger"):
        read_lives(path, None)


def test_a_ledger_of_before_works_were_noted_is_read_and_gone_on_with(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", updates=2) / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE works")
    flow = flow_page(Run(path.parent), None)
    assert flow["actors"] == [] and [g["group"] for g in flow["groups"]] == [1, 2]
    with contextlib.closing(SqliteLedger(path, "run")) as ledger:
        ledger.note([Work("critic", 3, 1.0, 2.0, 2)])
    assert read_lives(path, None).works == (Work("critic", 3, 1.0, 2.0, 2),) and read_balance(path).balanced


def test_curves_have_the_interval_that_the_run_measured(client: TestClient) -> None:
    told = client.get("/api/runs/0/series", params={"names": "eval/accuracy_frac,rollout/reward_mean"}).json()
    assert told["eval/accuracy_frac"] == [[0, 0.25, None, None], [6, 0.75, 0.7, 0.8]]
    assert told["rollout/reward_mean"][:2] == [[1, 0.1], [2, 0.2]]


def test_an_export_is_what_capo_ray_credit_reads(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(client.get("/api/runs/0/export", params={"filter": "mixed", "update": 2}).text)
    assert json.loads(path.read_text())["id"] == "p2"
    assert main(["credit", "grpo", "--input", str(path), "--json"]) == 0


def test_a_report_is_one_file_that_no_text_can_break_out_of(run_dir: Path) -> None:
    page = build_report([Run(run_dir)], 4)
    assert HOSTILE not in page and page.count("</script>") == 2
    data = json.loads(re.search(r'id="embedded">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    content = data["content"][0]
    assert len(content["groups"]) == 4 and data["runs"][0]["name"] == "one"
    assert content["groups"]["5"]["question"].startswith(HOSTILE)
    assert content["credits"]["5"]["capo"]["responses"] and "refused" in content["credits"]["5"]["mig"]
    assert "connect-src" not in page and "default-src &#x27;none&#x27;" in page


def test_the_commands_that_read_runs(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_run(tmp_path / "two", updates=3, vote="union")
    assert main(["compare", str(run_dir), str(other), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["keys"] == {"credit.vote": ["majority", "union"], "run.num_updates": [6, 3]}
    assert [(p["update"], [r and r["accuracy"] for r in p["runs"]]) for p in told["curve"]] == [
        (0, [0.25, 0.25]),
        (3, [None, 0.75]),
        (6, [0.75, None]),
    ]
    assert main(["runs", str(run_dir.parent), "--json"]) == 0
    assert [(r["run"], r["status"], r["last_accuracy"]) for r in json.loads(capsys.readouterr().out)] == [
        ("one", "ended", 0.75)
    ]
    assert main(["report", str(run_dir), "--compare", str(other), "-o", str(tmp_path / "r.html"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"output": str(tmp_path / "r.html"), "bytes": ANY, "runs": [str(run_dir), str(other)]}
    assert (tmp_path / "r.html").stat().st_size == told["bytes"] > 20_000


def test_what_a_resumed_run_spent_is_counted_over_its_sessions(tmp_path: Path) -> None:
    """By hand: 100 tokens to update 2, then, 1,000 s later, 30 of a new engine's own count; at 70 one is replaced."""
    rows = [(0, 0, 10), (2, 20, 100), (3, 1030, 30), (4, 1040, 70), (5, 1050, 35), (6, 1060, 50)]
    told = [
        {"update": u, "unix_s": 5000 + s, "rollout/generated_tokens_total": n, "eval/accuracy_frac": 0.5}
        for u, s, n in rows
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    sessions = [{"from_version": 0, "unix_s": 4990.0}, {"from_version": 2, "unix_s": 6020.0}]
    (tmp_path / "history.json").write_text(json.dumps({"run_id": "a", "sessions": sessions}))
    found = compare([Run(tmp_path)])
    points = [one["runs"][0] for one in found["curve"]]
    assert [p["tokens"] for p in points] == [10, 100, 130, 170, 170, 185]
    assert [p["seconds"] for p in points] == [0, 20, 30, 40, 50, 60]
    assert (found["runs"][0]["tokens"], found["runs"][0]["seconds"]) == (185, 60)


@pytest.mark.parametrize("command", [["view"], ["report", "-o", "r.html"], ["compare"]])
def test_what_is_no_run_is_refused_in_one_sentence(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "none"):
        assert main([*command, str(path)]) == 1
        assert re.search(r"expected the directory of a run.*got .*", capsys.readouterr().err)


def test_a_run_is_read_while_it_is_written(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", updates=2)
    run = Run(path)
    assert [row["update"] for row in run.rows()] == [0, 1, 2] and len(run.heads()) == 2
    assert all(a is b for a, b in zip(*run.rows()[1:], strict=False)), "names are kept once for all rows"
    whole = (path / "transcripts.jsonl").read_bytes()
    line = whole.splitlines(keepends=True)[0]
    with (path / "transcripts.jsonl").open("ab") as file:
        file.write(line[:100])
        file.flush()
        assert len(run.heads()) == 2  # half a line is left for the next look
        file.write(line[100:])
    assert len(run.heads()) == 3 and run.group(2)["update"] == 1
    rows = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(
        b"".join(rows[:-1]) + b'{"update": 2, "longer/than_before_frac": 0.123456789}\n'
    )
    assert run.rows()[-1] == {"update": 2, "longer/than_before_frac": 0.123456789}
    (path / "metrics.jsonl").write_bytes(rows[0])  # a resume cuts rows away
    assert [row["update"] for row in run.rows()] == [0]


def test_damage_and_older_layouts_leave_the_rest_readable(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", updates=2)
    lines = (path / "transcripts.jsonl").read_bytes()
    (path / "transcripts.jsonl").write_bytes(b'{"update": 1, "response": "older"}\n[1]\nno json\n' + lines)
    (path / "config.yaml").write_text("a: [")
    (path / "summary.json").write_text("{")
    (path / "ledger.sqlite").unlink()
    run = Run(path)
    client = TestClient(build_app([run], TOKEN), headers={"Authorization": f"Bearer {TOKEN}"})
    assert [head.index for head in choose(run)] == [4, 3, 0, 1, 2]
    assert client.get("/api/runs").json()[0]["status"] == "broken off"
    for page in ("groups", "groups/1", "groups/4", "critic", "flow", "methods", "series?names=tokens_per_second"):
        assert client.get(f"/api/runs/0/{page}").status_code == 200, page
    assert "refused" in client.get("/api/runs/0/groups/0/credit?method=grpo").json()
    (path / "ledger.sqlite").write_bytes(b"half a ledger")
    assert "cannot be read as a ledger" in client.get("/api/runs/0/flow").json()["refused"]
    assert main(["report", str(path), "-o", str(tmp_path / "report.html")]) == 0, "the other pages are whole"
    assert "cannot be read as a ledger" in (tmp_path / "report.html").read_text()
    with pytest.raises(NoRun):
        Run(tmp_path)


def test_a_run_that_another_hand_has_changed_does_not_keep_the_others_from_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "whole", updates=2)
    odd = make_run(tmp_path / "odd", updates=2)
    (odd / "config.yaml").write_text("credit: capo\nrun: 7\nmodel: [1]\n")
    told = [json.loads(line) for line in (odd / "metrics.jsonl").read_text().splitlines()]
    told[0] |= {"unix_s": "noon", "eval/accuracy_frac": "a quarter", "rollout/generated_tokens_total": [1]}
    (odd / "metrics.jsonl").write_text("".join(json.dumps(row) + "\r\n" for row in told))
    assert main(["runs", str(tmp_path)]) == 0
    listed = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert listed["whole"][1:] == ["ended", "capo", "2", "0.250", "→", "0.750", "12"]
    assert listed["odd"][1:] == ["ended", "2", "0.750", "→", "0.750", "12"]
    assert main(["compare", *map(str, (tmp_path / "whole", odd))]) == 0


def test_a_response_without_a_verdict_is_neither_right_nor_wrong_in_the_list(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", updates=1)
    heads = [[None, None], [1, None], [0, None], [0, 0, 1, None]]
    lines = [json.dumps({"head": {"update": i, "rewards": rewards}}) + "\n" for i, rewards in enumerate(heads)]
    (path / "transcripts.jsonl").write_text("".join(lines))
    found = {
        name: sorted(head.index for head in choose(Run(path), filter=name)) for name in ("wrong", "right", "mixed")
    }
    assert found == {"wrong": [2], "right": [1], "mixed": [3]}
    assert [head.index for head in choose(Run(path), sort="reward")] == [0, 2, 3, 1]


def test_a_run_is_running_while_its_driver_lives(tmp_path: Path) -> None:
    import os
    import socket

    path = make_run(tmp_path / "run", updates=1)
    for words, status in (
        (f"pid {os.getpid()} on {socket.gethostname()}\n", "running"),
        (f"pid {2**22 + 1} on {socket.gethostname()}\n", "ended"),
        ("pid 1 on elsewhere\n", "running"),
        ("", "ended"),
    ):
        (path / "driver.lock").write_text(words)
        assert Run(path).status == status


def test_a_page_opens_without_loading_all_settings_and_methods() -> None:
    code = "import sys, capo_ray.cli.view, capo_ray.view.server; print('capo_ray.config' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--print-url", "--json"])
def test_capo_ray_view_prints_its_address_and_serves_until_it_is_ended(run_dir: Path, option: str) -> None:
    import httpx

    words = [sys.executable, "-m", "capo_ray", "view", str(run_dir), "--port", "0", option]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if option == "--json":
            told = json.loads(address)
            address = told["url"]
            assert address.endswith(f"?token={told['token']}") and told["runs"] == [str(run_dir)]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=\S{20,}", address)
        base, _, _ = address.partition("?")
        assert httpx.get(base).status_code == 401 and httpx.get(address).status_code == 200
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_capo_ray_critique_judges_the_responses_of_a_transcript(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--input", str(run_dir / "transcripts.jsonl"), "--json", "critic.backend=calculator"]
    assert main(["critique", *words]) == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert source["source"] == "transcript" and source["flagged_steps"] == 6 * 4  # "2+2=5" in each response
