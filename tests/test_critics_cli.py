"""`capo-ray critique` with the calculator: figures, GSM8K's shape, and input that does not fit."""

import gzip
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from capo_ray.cli import main
from capo_ray.cli.compose import compose_train
from capo_ray.cli.critique import read_input
from capo_ray.config.credit import CREDIT_METHODS
from capo_ray.config.steps import DEFAULT_STEPS, SEGMENTERS
from capo_ray.credit import assign_credit
from capo_ray.critics.solutions import read_solutions
from capo_ray.metrics.transcripts import group_line
from capo_ray.problems.files import MAX_ROW_BYTES
from capo_ray.steps import split_text
from capo_ray.types import Group, Problem
from tests.credit_groups import Member, judged

LINES = [
    {"question": "3+4*2?", "response": "4*2 = 8\n\n8+3 = 12\n\nSo \\boxed{12}.", "answer": "11", "wrong_steps": [1]},
    {"question": "2+2?", "response": "2+2 = 4\n\nSo \\boxed{4}.", "answer": "4", "wrong_steps": []},
    {"question": "2+2?", "steps": ["I think", "so 4"], "answer": "4", "wrong_steps": [0]},
]
NESTED = {
    "question": "q",
    "ground_truth": "2 * 3 = <<2*3=6>>6\nA: 6",
    "small": {"is_correct": False, "solution": "2 * 3 = <<2*3=6>>5\nA: 5"},
    "large": {"is_correct": True, "solution": "2 * 3 = <<2*3=6>>6\nA: 6"},
}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def figures(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["critique", *words, "--json", "critic.backend=calculator"]) == 0
    return json.loads(capsys.readouterr().out)


def test_quality_is_measured_against_the_given_wrong_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = figures(capsys, "--input", write(tmp_path / "s.jsonl", LINES), "--gold")
    (row,) = out["quality"]
    assert (row["precision"], row["recall"], row["responses"], row["unread"]) == (1.0, 0.5, 3, 1)
    # Two responses with a wrong step: one is found, of the other nothing could be read, which matches neither way.
    assert (row["first_error_bad"], row["first_error_good"]) == (0.5, 1.0)
    assert row["first_error_f1"] == pytest.approx(2 / 3) and row["f1_low"] < 2 / 3 < row["f1_high"]
    assert out["summary"]["responses_without_valid"] == 1
    assert out["reasons"] == {"no verdict": 1}


def test_a_line_of_ones_own_is_judged_in_its_own_steps_whatever_stands_beside_them(tmp_path: Path) -> None:
    line = {**LINES[0], "meta": {"solution": "see the book"}}
    (solution,) = read_solutions(read_input(write(tmp_path / "s.jsonl", [line])), DEFAULT_STEPS, 0, print)
    assert len(solution.steps) == 3 and solution.wrong == {1} and solution.source == ""


def test_a_runs_transcript_is_judged_as_the_run_judged_it_however_long_its_lines_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The critic's prompt, and with it the key of its votes in the store, is made of question, solution and steps."""
    members = tuple(judged(Member(1, [6, 1], text="1+1=2\n2"), i) for i in range(2))
    made = Group(7, Problem("p", "1+1", "2", "1+1=2"), members)
    line = group_line(1, made, assign_credit(made, CREDIT_METHODS["grpo"]())) | {"more": "x" * MAX_ROW_BYTES}
    path = write(tmp_path / "transcripts.jsonl", [line])
    found = list(read_solutions(read_input(path), DEFAULT_STEPS, 0, print))
    assert [(s.problem.prompt, s.problem.solution, s.steps) for s in found] == [("1+1", "1+1=2", ("1+1=2\n", "2"))] * 2
    assert figures(capsys, "--input", path)["summary"]["steps"] == 4
    assert figures(capsys, "--input", path, "steps=blank_line")["summary"]["steps"] == 2, "where it is asked how to cut"


def test_responses_without_steps_are_cut_as_training_cuts_them(tmp_path: Path) -> None:
    responses = [{"text": "a\n\nb", "tokens": ["a\n\n", "b"], "reward": 0}, {"text": "c", "steps": None}]
    path = write(tmp_path / "groups.jsonl", [{"id": 1, "question": "q", "responses": responses}])
    found = list(read_solutions(read_input(path), DEFAULT_STEPS, 0, print))
    assert [(s.steps, s.right_answer) for s in found] == [(("a\n\n", "b"), False), (("c",), None)]


def test_gsm8ks_model_solutions_are_read_with_their_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"
    out = figures(capsys, "--input", write(tmp_path / "s.jsonl", [NESTED]), "--output", str(output))
    assert [(row["source"], row["flagged_steps"]) for row in out["sources"]] == [("small", 1), ("large", 0)]
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["wrong"] for row in written] == [[0], []]


def test_the_table_is_printed_without_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "s.jsonl", LINES)
    assert main(["critique", "--input", path, "--gold", "--truth", "calculator", "critic.backend=calculator"]) == 0
    assert "precision" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ("[]", "question"),
        ({"question": "q"}, "response"),
        ({"question": "q", "response": "a", "wrong_steps": [1]}, "wrong_steps"),
        ({"question": "q", "response": "a", "wrong_steps": [True]}, "wrong_steps"),
        ("[" * 100_000, "line 2"),
        ({"question": "q", "steps": ["a", 3], "response": "b"}, '"steps" that are all texts'),
        ({"question": "q", "responses": [3]}, '"responses" that are objects, got int'),
        ({"question": "q", "responses": [{"reward": 1}]}, '"text", or "tokens" and "steps"'),
        ({"question": "q \ud83d", "response": "1+1=2"}, "texts of whole characters, got half of one"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_by_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: object, words: str
) -> None:
    path = write(tmp_path / "s.jsonl", [LINES[0], line])
    assert main(["critique", "--input", path, "critic.backend=calculator"]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "line 2" in error
    assert len(error.strip().splitlines()) == 1


def test_gold_without_wrong_steps_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "s.jsonl", [{"question": "q", "response": "1+1=2"}])
    assert main(["critique", "--input", path, "--gold", "critic.backend=calculator"]) == 1
    assert "wrong_steps" in capsys.readouterr().err


def test_an_endpoint_without_a_scheme_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "s.jsonl", [LINES[0]])
    words = ["critic=endpoint", "critic.endpoint.base_url=127.0.0.1:9/v1", "critic.endpoint.model=m"]
    assert main(["critique", "--input", path, *words]) == 1
    error = capsys.readouterr().err
    assert "got no http:// or https:// before 127.0.0.1:9/v1" in error and "traceback" not in error


def test_the_words_of_a_server_stand_in_the_table_of_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"detail":"Not Found"}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        path = write(tmp_path / "s.jsonl", [LINES[0]])
        url = f"critic.endpoint.base_url=http://127.0.0.1:{server.server_port}"
        assert main(["critique", "--input", path, "critic=endpoint", url, "critic.endpoint.model=m"]) == 1
        server.shutdown()
    assert "refused: HTTP 404 at /chat/completions: Not Found" in capsys.readouterr().out


def test_a_file_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["critique", "--input", "/nowhere.jsonl", "critic.backend=calculator"]) == 1
    assert "--input" in capsys.readouterr().err


def test_texts_are_cut_as_training_cuts_them() -> None:
    assert split_text("a\n\nb\n\n\n") == ("a\n\n", "b\n\n\n")
    assert "".join(split_text("x\n\n \n\ny")) == "x\n\n \n\ny"


@pytest.mark.parametrize("choice", [["credit=acpo"], *([f"steps={name}"] for name in SEGMENTERS)])
def test_any_segmenter_cuts_a_text_or_says_what_it_lacks(
    choice: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["critique", "--input", write(tmp_path / "s.jsonl", LINES[:1]), "--json", "critic.backend=calculator"]
    steps = compose_train(choice).steps
    reads = steps.reads
    code, said = main([*words, *choice]), capsys.readouterr()
    if reads == {"text"}:
        assert (code, json.loads(said.out)["summary"]["steps"]) == (0, 3)
        return
    assert code == 1 and len(said.err.strip().splitlines()) == 1
    (lacking,) = reads - {"text"}
    assert f"line 1: steps.segmenter={steps.segmenter} reads the {lacking} of a response" in said.err
    assert main([*words, *choice, "steps=sentence"]) == 0, "which is what the sentence advises"


STEPS = ["2+2 = 5", "So 5."]
LAYOUTS: dict[str, tuple[dict[str, Any], list[int], int]] = {
    "ProcessBench": (
        {"id": "g-0", "problem": "2+2?", "steps": STEPS, "final_answer_correct": False, "label": 0},
        [0],
        1,
    ),
    "PRM800K": (
        {
            "question": {"problem": "2+2?", "ground_truth_answer": "4"},
            "label": {
                "steps": [
                    {"completions": [{"text": "Add.", "rating": 1}], "chosen_completion": 0},
                    {"completions": [], "human_completion": {"text": "Now."}, "chosen_completion": None},
                    {"completions": [{"text": "2+2 = 5", "rating": -1}], "chosen_completion": None},
                ],
                "finish_reason": "found_error",
            },
        },
        [2],
        3,
    ),
    "Math-Shepherd": (
        {
            "input": "2+2? Step 1: 2+2 = 5 ки\nStep 2: So 5 ки",
            "label": "2+2? Step 1: 2+2 = 5 -\nStep 2: So 5 +",
            "task": "GSM8K",
        },
        [0],
        2,
    ),
    "TRL": ({"prompt": "2+2?", "completions": STEPS, "labels": [True, False]}, [1], 2),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_of_step_labels_are_read_and_told(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, wrong, labelled = LAYOUTS[name]
    path = write(tmp_path / "s.jsonl", [row])
    said: list[str] = []
    (solution,) = read_solutions(read_input(path), DEFAULT_STEPS, 0, said.append)
    assert said == [f"line 1 is read as {name}'s layout"]
    assert (sorted(solution.wrong or ()), solution.num_labelled or len(solution.steps)) == (wrong, labelled)
    assert solution.problem.prompt == "2+2?"
    assert main(["critique", "--input", path, "--gold", "--json", "critic.backend=calculator"]) in (0, 1)
    told = capsys.readouterr()
    assert f"line 1 is read as {name}'s layout" in told.err
    assert json.loads(told.out)["quality"][0]["responses"] == 1


def test_several_settings_judge_the_same_solutions_and_stand_in_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "2+2?", "steps": ["2+2 = 5", "So 4 = 4."], "wrong_steps": [0]}] * 2
    rows += [{"question": "5+7?", "steps": ["5+7 = 2"], "wrong_steps": []}]
    path, output = write(tmp_path / "s.jsonl", rows), tmp_path / "out.jsonl"
    words = ["--input", path, "--gold", "--output", str(output), "--also", "critic.calculator_modulus=10"]
    told = figures(capsys, *words)
    ordinary, modular = told["quality"][0], told["also"][0]["quality"][0]
    assert told["also"][0]["setting"] == "critic.calculator_modulus=10"
    assert (ordinary["first_error_bad"], ordinary["first_error_good"], ordinary["first_error_f1"]) == (1, 0, 0)
    assert (modular["first_error_bad"], modular["first_error_good"], modular["first_error_f1"]) == (1, 1, 1)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row.get("setting", ""), row["wrong"]) for row in written if row["line"] == 3] == [
        ("", [0]),
        ("critic.calculator_modulus=10", []),
    ]
    assert main(["critique", *words, "critic.backend=calculator"]) == 0
    assert "all settings" in capsys.readouterr().out
    assert main(["critique", *words, "--also", "steps=sentence", "critic.backend=calculator"]) == 1
    assert "--also must leave steps" in capsys.readouterr().err


def test_steps_behind_the_first_error_that_nobody_labelled_count_neither_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"problem": "q", "steps": ["2+2 = 5", "5+1 = 7", "7+1 = 9"], "label": 0}
    (quality,) = figures(capsys, "--input", write(tmp_path / "s.jsonl", [row]), "--gold")["quality"]
    assert (quality["precision"], quality["recall"], quality["first_error_bad"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"problem": "q", "steps": ["a"], "label": 1}, '"label" must be -1 or'),
        ({"question": {}, "label": {"steps": [{"completions": [{"text": "a"}]}]}}, "expected PRM800K's layout"),
        ({"input": "q Step 1: a ки", "label": "q"}, '"label" must repeat "input"'),
        ({"prompt": "q", "completions": ["a"], "labels": []}, '"labels" must be true or false'),
    ],
)
def test_a_published_layout_that_does_not_fit_is_one_sentence(
    row: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["critique", "--input", write(tmp_path / "s.jsonl", [row]), "critic.backend=calculator"]) == 1
    assert f"line 1: {words}" in capsys.readouterr().err


def test_a_byte_order_mark_and_packed_input_are_read_and_latin_1_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps({"question": "q", "response": "2+2 = 5"})
    (tmp_path / "bom.jsonl").write_text("\ufeff" + line, encoding="utf-8")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    for name in ("bom.jsonl", "packed.jsonl.gz"):
        assert figures(capsys, "--input", str(tmp_path / name))["summary"]["responses"] == 1
    (tmp_path / "latin.jsonl").write_bytes('{"question": "né", "response": "1"}'.encode("latin-1"))
    assert main(["critique", "--input", str(tmp_path / "latin.jsonl"), "critic.backend=calculator"]) == 1
    error = capsys.readouterr().err
    assert "line 1: expected a JSON object in UTF-8" in error and "traceback" not in error
