"""Problem sources: order, cursor, held-out problems, real files and what bad input gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from capo_ray.config.sections import DataConfig
from capo_ray.problems import asset_path, build_problems
from capo_ray.protocols import RunFailed

CONF = Path(__file__).resolve().parent.parent / "conf" / "data"
GSM8K_ROW = {
    "question": "Natalia sold clips to 48 friends in April and half as many in May. How many altogether?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nAltogether 48+24 = <<48+24=72>>72.\n#### 72",
}


def write_rows(path: Path, rows: list[object]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def numbered(path: Path, n: int) -> str:
    return write_rows(path, [{"question": f"q{k}", "answer": f"{k}"} for k in range(n)])


def take(source, n: int) -> list[str]:
    return [source.next_problem().prompt for _ in range(n)]


def preset(name: str, **more: object) -> DataConfig:
    import yaml

    return DataConfig(**{**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **more})


@pytest.mark.parametrize("kind", ["chains", "jsonl"])
def test_a_restored_source_goes_on_with_the_next_problem(kind, tmp_path):
    config = DataConfig(kind=kind, path=numbered(tmp_path / "rows.jsonl", 10) if kind == "jsonl" else "")
    source = build_problems(config, seed=4).train
    take(source, 13)
    state = json.loads(json.dumps(source.state()))
    expected = take(source, 20)
    again = build_problems(config, seed=4).train
    again.restore(state)
    assert take(again, 20) == expected
    other = build_problems(config, seed=5).train
    other.restore(state)  # the seed of the order belongs to the cursor
    assert take(other, 20) == expected


def test_an_epoch_holds_every_training_row_once_in_an_order_of_its_own(tmp_path):
    problems = build_problems(DataConfig(kind="jsonl", path=numbered(tmp_path / "rows.jsonl", 30)), seed=0)
    first, second = take(problems.train, 27), take(problems.train, 27)
    assert sorted(first) == sorted(second) == sorted(f"q{k}" for k in range(27))
    assert first != second
    assert [problem.prompt for problem in problems.held_out(99)] == ["q27", "q28", "q29"]


def test_chains_differ_by_seed_but_are_held_out_alike():
    one, two = (build_problems(DataConfig(chain_steps=4), seed=seed) for seed in (1, 2))
    assert one.held_out(40) == two.held_out(40)
    drawn = take(one.train, 200)
    assert drawn != take(two.train, 200)
    assert not set(drawn) & {problem.prompt for problem in one.held_out(200)}
    assert all(len(prompt) == 9 for prompt in drawn)


def test_a_question_that_is_held_out_is_not_trained_on(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", [{"question": q, "answer": "1"} for q in "abc"])
    held_out = write_rows(tmp_path / "test.jsonl", [{"question": q, "answer": "1"} for q in "cd"])
    problems = build_problems(DataConfig(kind="jsonl", path=train, eval_path=held_out), seed=0)
    assert set(take(problems.train, 6)) == {"a", "b"}
    assert [problem.prompt for problem in problems.held_out(5)] == ["c", "d"]


def test_gsm8k_gives_answer_and_reference_solution(tmp_path):
    path = write_rows(tmp_path / "gsm8k.jsonl", [GSM8K_ROW])
    problem = build_problems(preset("gsm8k", path=path), seed=0).train.next_problem()
    assert problem.answer == "72"
    assert problem.solution == "Natalia sold 48/2 = 24 clips in May.\nAltogether 48+24 = 72."
    assert problem.source == "gsm8k"
    assert problem.id == "gsm8k-1"


def test_math_gives_the_content_of_the_box(tmp_path):
    rows = [
        {"problem": "?", "solution": "so it is $\\boxed{\\frac{1}{\\sqrt{2}}}$."},
        {"problem": "no box", "solution": "2"},
        {"problem": "open box", "solution": "\\boxed{2"},
    ]
    problems = build_problems(preset("math", path=write_rows(tmp_path / "math.jsonl", rows)), seed=0)
    problem = problems.train.next_problem()
    assert problem.answer == "\\frac{1}{\\sqrt{2}}"
    assert problem.solution == rows[0]["solution"]
    assert len(problems.bad_rows) == 2


def test_the_chains_preset_needs_nothing():
    assert build_problems(preset("chains"), seed=0).train.next_problem().source == "chains"


def test_a_bad_row_is_reported_with_file_line_and_reason(tmp_path):
    good = {"question": "q", "answer": "1"}
    rows = [good, "{oops", "", [1], {"question": "q"}, {"question": " ", "answer": 1}, {"question": "n", "answer": 2.5}]
    path = write_rows(tmp_path / "rows.jsonl", [*rows, {"question": None, "answer": 1}])
    problems = build_problems(DataConfig(kind="jsonl", path=path, eval_frac=0.0), seed=0)
    places = [line.split(": ")[0] for line in problems.bad_rows]
    assert places == [f"{path}:{number}" for number in (2, 4, 5, 6, 8)]
    assert "expected a column 'answer', got 'question'" in problems.bad_rows[2]
    assert set(take(problems.train, 2)) == {"q", "n"}
    assert problems.held_out(5) == []


def test_more_bad_rows_than_the_budget_end_the_run_with_the_first_of_them(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["{"] * 3)
    with pytest.raises(RunFailed, match=r"at most 2 bad rows \(max_bad_rows\), got 3: .*rows.jsonl:1: expected a JSON"):
        build_problems(DataConfig(kind="jsonl", path=path, max_bad_rows=2), seed=0)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"kind": "jsonl"}, "data.path"),
        ({"kind": "jsonl", "path": "nowhere.jsonl"}, "which is no file"),
        ({"kind": "parquet", "path": "nowhere.parquet"}, "which is no file"),
        ({"kind": "parquet", "path": __file__}, "expected a Parquet file"),
        ({"kind": "jsonl", "path": "/dev/null"}, "which is no file"),
    ],
)
def test_missing_input_gets_a_sentence(config, sentence):
    with pytest.raises(RunFailed, match=sentence):
        build_problems(DataConfig(**config), seed=0)


def test_an_empty_data_set_gets_a_sentence(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [])
    with pytest.raises(RunFailed, match=r"expected training problems in .*, got none"):
        build_problems(DataConfig(kind="jsonl", path=path), seed=0)


def test_parquet_reads_like_jsonl(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    columns = {"q": [f"q{k}" for k in range(5)] + [None], "a": [0, 1, 2, 3, 4, 5]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    config = DataConfig(kind="parquet", path=str(path), question_column="q", answer_column="a", eval_frac=0.2)
    problems = build_problems(config, seed=0)
    assert set(take(problems.train, 4)) == {"q0", "q1", "q2", "q3"}
    assert [(p.prompt, p.answer) for p in problems.held_out(3)] == [("q4", "4")]
    assert problems.bad_rows == (f"{path}:6: expected text in 'q', got NoneType",)


def test_the_hub_without_its_package_gets_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RunFailed, match=r"capo-ray\[hub\]"):
        build_problems(DataConfig(kind="hub", path="openai/gsm8k"), seed=0)


def test_resuming_with_other_data_is_refused(tmp_path):
    config = DataConfig(kind="jsonl", path=numbered(tmp_path / "ten.jsonl", 10))
    state = build_problems(config, seed=0).train.state()
    other = DataConfig(kind="jsonl", path=numbered(tmp_path / "twelve.jsonl", 12))
    with pytest.raises(RunFailed, match="expected the 9 training problems of the run to resume, got 11"):
        build_problems(other, seed=0).train.restore(state)


def test_laptop_names_resolve_to_the_shipped_checkpoints():
    assert asset_path("laptop", "policy").name == "chains-policy"
    assert asset_path("laptop", "critic").name == "chains-critic"
    assert asset_path("discovery", "policy").name == "discovery-policy"
    assert asset_path("novice", "critic").name == "novice-critic"
    assert asset_path("/models/x", "policy") == Path("/models/x")


def test_a_models_path_is_handed_on_with_its_home_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert asset_path("~/m", "policy") == asset_path("~/m", "critic") == Path("/home/me/m")
    assert asset_path("~nobody-of-this-name/m", "policy") == Path("~nobody-of-this-name/m")
    assert asset_path("organisation/~name", "policy") == Path("organisation/~name")
