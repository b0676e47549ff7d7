"""`capo-ray critique` with the calculator: figures, GSM8K's shape, and input that does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cli import main
from capo_ray.cli.critique_input import cut_text

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
    assert (row["precision"], row["recall"], row["responses"]) == (1.0, 0.5, 3)
    assert out["summary"]["responses_without_valid"] == 1
    assert out["reasons"] == {"no verdict": 1}


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


def test_a_file_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["critique", "--input", "/nowhere.jsonl", "critic.backend=calculator"]) == 1
    assert "--input" in capsys.readouterr().err


def test_texts_are_cut_as_training_cuts_them() -> None:
    assert cut_text("a\n\nb\n\n\n", "blank_line") == ("a\n\n", "b\n\n\n")
    assert "".join(cut_text("x\n\n \n\ny", "blank_line")) == "x\n\n \n\ny"
