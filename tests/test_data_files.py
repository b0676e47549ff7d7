"""What people have: formats, folders and layouts of problem files, each with a minimal row of its own."""

from __future__ import annotations

import bz2
import gzip
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from capo_ray.cli.compose import compose_train
from capo_ray.cli.plan_data import data_words
from capo_ray.config.sections import DataConfig
from capo_ray.config.sft import SftDataConfig
from capo_ray.problems import build_problems
from capo_ray.problems.columns import BadRow, boxed_answer
from capo_ray.problems.haystack import read_sentences
from capo_ray.problems.lessons import build_lessons
from capo_ray.protocols import RunFailed
from capo_ray.types import Problem

ROW = {"question": "What is 2+2?", "answer": "4"}
TURNS = [{"role": "system", "content": "Box it."}, {"role": "user", "content": "What is 2+2?"}]
VERL = {"data_source": "m", "prompt": TURNS[1:], "reward_model": {"ground_truth": "4", "style": "rule"}}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def saved(folder: Path, *rows: Any) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` writes it, with a cache beside the shard."""
    folder.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(list(rows))
    for name in ("data-00000-of-00001.arrow", "cache-0123.arrow"):
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def problems(path: Path | str, **keys: Any) -> list[Problem]:
    config = DataConfig(**{"kind": "files", "path": str(path), "eval_frac": 0.0, **keys})
    source = build_problems(config, seed=0).train
    size = source.state()["size"]
    return sorted((source.next_problem() for _ in range(size)), key=lambda problem: problem.id)


def pairs(path: Path | str, **keys: Any) -> list[tuple[str, str]]:
    return [(problem.prompt, problem.answer) for problem in problems(path, **keys)]


def test_a_file_is_what_its_first_bytes_say(tmp_path: Path) -> None:
    one = [("What is 2+2?", "4")]
    text = json.dumps(ROW) + "\n"
    (tmp_path / "array.json").write_text(json.dumps([ROW], indent=1))
    (tmp_path / "array.jsonl").write_text(json.dumps([ROW]))
    (tmp_path / "object.json").write_text(json.dumps({"version": 1, "data": [ROW]}))
    (tmp_path / "bom.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "packed.jsonl.bz2").write_bytes(bz2.compress(text.encode()))
    (tmp_path / "rows.csv").write_text("question,answer\nWhat is 2+2?,4\n")
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(b"question,answer\nWhat is 2+2?,4\n"))
    (tmp_path / "rows.tsv").write_text("\ufeffquestion\tanswer\nWhat is 2+2?\t4\n", encoding="utf-8")
    parquet(tmp_path / "parquet_under_another_name.jsonl", ROW)
    for path in sorted(tmp_path.iterdir()):
        assert pairs(path) == one, path.name


def test_a_packed_json_object_is_read_as_the_plain_one_is(tmp_path: Path) -> None:
    for name, pack in (("a.json.gz", gzip.compress), ("B.JSON", bytes)):
        (tmp_path / name).write_bytes(pack(json.dumps({"data": [ROW] * 2}, indent=1).encode()))
        assert [p.answer for p in problems(tmp_path / name)] == ["4", "4"]


def test_a_missing_number_of_a_table_is_a_bad_row_and_a_decimal_its_text(tmp_path: Path) -> None:
    told = [{"question": f"q{i}", "answer": one} for i, one in enumerate([1.5, math.nan, math.inf])]
    found = build_problems(DataConfig(kind="files", path=str(parquet(tmp_path / "n.parquet", *told)), eval_frac=0), 0)
    assert [row.partition(": ")[2] for row in found.bad_rows] == [
        "expected text in 'answer', got nan",
        "expected text in 'answer', got inf",
    ]
    exact = parquet(tmp_path / "d.parquet", {"question": "q", "answer": Decimal("1.50")})
    assert [p.answer for p in problems(exact)] == ["1.50"]


def test_a_usual_column_that_cannot_be_used_is_said_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"expected text in 'answer', got bool; set data.answer_column if it is anothe"):
        problems(write(tmp_path / "b.jsonl", {"question": "q", "answer": True}))


def test_rows_that_are_held_out_too_and_data_without_any_are_told(tmp_path: Path) -> None:
    rows = [{"question": f"q{i % 9}", "answer": i} for i in range(10)]
    found = build_problems(DataConfig(kind="files", path=str(write(tmp_path / "a.jsonl", *rows))), 0)
    assert found.notes[-1].endswith("a.jsonl: 1 rows are not trained on, for the same questions are held out")
    few = build_problems(DataConfig(kind="files", path=str(write(tmp_path / "b.jsonl", *rows[:4]))), 0)
    ours, theirs = (
        {"question": "caf\u00e9:\nhow  many?", "answer": 1},
        {"question": "cafe\u0301:\r\nhow many?", "answer": 1},
    )
    paths = {
        "path": str(write(tmp_path / "c.jsonl", ours, rows[0])),
        "eval_path": str(write(tmp_path / "d.jsonl", theirs)),
    }
    assert build_problems(DataConfig(kind="files", **paths), 0).train.state()["size"] == 1
    assert "none of 4 rows is held out, so that no accuracy is measured" in few.notes[-1]


def test_cells_of_csv_stay_the_text_that_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\n"a, ""b""\nc",007\nq,1.50\nshort\n')
    config = DataConfig(kind="csv", path=str(path), eval_frac=0)
    assert pairs(path, kind="csv") == [('a, "b"\nc', "007"), ("q", "1.50")]
    assert "a cell for each column" in build_problems(config, 0).bad_rows[0]


def test_a_kind_that_the_file_is_not_is_named_with_the_one_that_it_is(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"which holds Parquet; set data\.kind=parquet"):
        problems(parquet(tmp_path / "a.jsonl", ROW), kind="jsonl")


def test_a_packed_file_that_is_cut_short_is_a_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(
        "".join(json.dumps({"question": f"q{k * k}", "answer": "1"}) + "\n" for k in range(9999)).encode()
    )
    for size in (len(whole) // 2, 12):
        (tmp_path / "a.jsonl.gz").write_bytes(whole[:size])
        with pytest.raises(RunFailed, match=r"expected to read .*a\.jsonl\.gz"):
            problems(tmp_path / "a.jsonl.gz")


def test_shards_patterns_and_folders_are_read_in_order(tmp_path: Path) -> None:
    for shard in range(3):
        parquet(tmp_path / f"data/train-0000{shard}-of-00003.parquet", {"question": f"q{shard}", "answer": "1"})
    parquet(tmp_path / "data/test-00000-of-00001.parquet", {"question": "t", "answer": "1"})
    shards = [("q0", "1"), ("q1", "1"), ("q2", "1")]
    assert pairs(tmp_path) == pairs(f"{tmp_path}/data/train-*") == shards
    assert pairs(tmp_path, kind="parquet", split="test") == [("t", "1")]
    assert len({problem.id for problem in problems(tmp_path)}) == 3  # shards number their rows alike
    held_out = DataConfig(kind="files", path=str(tmp_path), eval_path=str(tmp_path))
    assert [problem.prompt for problem in build_problems(held_out, 0).held_out(9)] == ["t"]
    with pytest.raises(RunFailed, match=r"split 'validation' in .*, found those of test, train; set data.split"):
        problems(tmp_path, split="validation")
    with pytest.raises(RunFailed, match="which matches no file"):
        problems(f"{tmp_path}/nothing-*.parquet")


def test_files_of_no_split_beside_those_of_one_are_told(tmp_path: Path) -> None:
    for name in ("part1.jsonl", "part2.jsonl", "train_more.jsonl", "test.jsonl"):
        write(tmp_path / name, {"question": name, "answer": "1"})
    found = build_problems(DataConfig(kind="files", path=str(tmp_path), eval_frac=0.0), 0)
    assert found.train.next_problem().prompt == "train_more.jsonl"
    assert "2 files whose names tell no split are left out: part1.jsonl, part2.jsonl" in " ".join(found.notes)


def test_a_data_set_saved_to_disk_is_read_without_its_caches(tmp_path: Path) -> None:
    assert pairs(saved(tmp_path / "one", ROW), kind="hub") == [("What is 2+2?", "4")]
    saved(tmp_path / "two/train", ROW)
    saved(tmp_path / "two/test", {"question": "t", "answer": "5"})
    (tmp_path / "two/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert pairs(tmp_path / "two") == [("What is 2+2?", "4")]
    assert pairs(tmp_path / "two", split="test") == [("t", "5")]


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rows.jsonl", ROW)
    assert pairs("~/rows.jsonl", kind="jsonl") == [("What is 2+2?", "4")]


LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "gsm8k": ({"question": "What is 2+2?", "answer": "2+2 = <<2+2=4>>4\n#### 4"}, "4"),
    "verl": (VERL, "4"),
    "areal": ({"messages": TURNS[1:], "answer": "4"}, "4"),
    "open_instruct": ({"messages": TURNS[1:], "ground_truth": "4", "dataset": "gsm8k"}, "4"),
    "orz": ({"prompt": [{"from": "user", "value": "What is 2+2?"}], "final_answer": "4"}, "4"),
    "deepscaler": ({"problem": "What is 2+2?", "answer": "4", "solution": "So \\boxed{4}."}, "4"),
    "numina": ({"source": "x", "problem": "What is 2+2?", "solution": "So $\\boxed{4}$.", "messages": TURNS}, "4"),
    "openr1": ({"problem": "What is 2+2?", "solution": "4", "answer": "4", "generations": ["a", "b"]}, "4"),
    "olympiad": ({"question": "What is 2+2?", "final_answer": ["4", "5"]}, "4,5"),
    "amc": ({"problem": "What is 2+2?", "answer": 27.0}, "27.0"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_columns_are_found_in_published_layouts_and_told(name: str, tmp_path: Path) -> None:
    row, answer = LAYOUTS[name]
    for path in (write(tmp_path / "rows.jsonl", row), parquet(tmp_path / "rows.parquet", row)):
        assert pairs(path) == [("What is 2+2?", answer)]
        assert "are read from" in build_problems(DataConfig(kind="files", path=str(path), eval_frac=0), 0).notes[0]


def test_a_solution_beside_the_answer_is_the_reference_solution(tmp_path: Path) -> None:
    row = {"problem": "What is 2+2?", "answer": "4", "solution": "Two and two are \\boxed{4}.", "worked": "2+2=<<4>>4"}
    without = {**row, "solution": None}
    for path in (write(tmp_path / "rows.jsonl", row, without), parquet(tmp_path / "rows.parquet", row, without)):
        assert [problem.solution for problem in problems(path)] == ["Two and two are \\boxed{4}.", None]
        note = build_problems(DataConfig(kind="files", path=str(path), eval_frac=0), 0).notes[0]
        assert note.endswith("answers from 'answer', reference solutions from 'solution'")
        given = {"question_column": "problem", "answer_column": "answer"}
        assert [problem.solution for problem in problems(path, **given)] == [None, None], (
            "what is given is what is read"
        )
        assert [problem.solution for problem in problems(path, **given, solution_column="worked")] == ["2+2=<<4>>4"] * 2
        with pytest.raises(RunFailed, match=r"expected a column 'wroked', got"):
            problems(path, solution_column="wroked")
        marked = {**given, "answer_column": "solution", "answer_marker": "\\boxed"}
        assert problems(path, **marked, solution_column="worked", max_bad_rows=1)[0].solution == "2+2=<<4>>4"


def test_a_table_gives_the_context_beside_columns_that_are_given(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "rows.parquet", {"q": "Which?", "a": "4", "told": ["One is 4.", "Two is 5."], "gold": [1]}
    )
    keys = {"question_column": "q", "answer_column": "a", "context_column": "told", "evidence_column": "gold"}
    assert "One is 4." in problems(path, **keys)[0].prompt


def test_columns_may_be_paths_into_nested_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"a": {"q": "What?"}, "answers": ["7", "8"], "dotted.name": "9"})
    assert pairs(path, question_column="a.q", answer_column="answers.0") == [("What?", "7")]
    assert pairs(path, question_column="a.q", answer_column="dotted.name") == [("What?", "9")]
    with pytest.raises(RunFailed, match=r"expected a column 'a.x', got 'a.q', 'answers', 'dotted.name'"):
        problems(path, question_column="a.x", answer_column="answers")


def test_a_table_gives_the_asked_for_columns_alone_and_names_all_where_one_is_wrong(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", VERL)
    keys = {"question_column": "prompt", "answer_column": "reward_model.ground_truth"}
    assert pairs(path, **keys) == [("What is 2+2?", "4")]
    with pytest.raises(RunFailed, match=r"got 'data_source', 'prompt', 'reward_model\.ground_truth'"):
        problems(path, **{**keys, "question_column": "question"})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([*TURNS, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Sure?"}], "one user turn"),
        ([{"role": "user", "content": [{"type": "image"}]}], "text in the user turn"),
        ([1, 2], "text or chat turns"),
        ([], "text or chat turns"),
        ({"role": "user"}, "expected text in 'prompt', got dict"),
    ],
)
def test_the_first_bad_row_is_named_where_no_row_is_good(value: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": value, "answer": "4"})
    with pytest.raises(RunFailed, match=rf"the first bad one: .*rows.jsonl:1: .*{words}"):
        problems(path, question_column="prompt", answer_column="answer")


def test_a_row_that_was_cut_inside_a_character_is_a_bad_one_and_no_run_draws_it(tmp_path: Path) -> None:
    """JSON escapes half of a pair alone, and no tokenizer takes it: a run would end where it is drawn."""
    path = write(tmp_path / "rows.jsonl", ROW, {"question": "2+2 \ud83d", "answer": "4"}, ROW)
    config = DataConfig(kind="files", path=str(path), eval_frac=0.0)
    assert len(problems(path)) == 2
    (bad,) = build_problems(config, 0).bad_rows
    assert bad.endswith(r"rows.jsonl:2: expected text in 'question', got half of a character, '\ud83d'")
    with pytest.raises(BadRow, match="half of a character"):
        read_sentences({"context": ["a.", "\ud83d b."]}, "context", "")


def test_system_turns_that_are_left_out_are_told(tmp_path: Path) -> None:
    config = DataConfig(kind="files", path=str(write(tmp_path / "a.jsonl", {"prompt": TURNS, "answer": "4"})))
    assert "the system turn of 1 rows is left out; model.system_prompt" in build_problems(config, 0).notes[1]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So $\\fbox{4}$.", "4"),
        ("So $\\boxed {4}$.", "4"),
        ("So $\\boxed 4$.", "4"),
        ("First $\\boxed{4}$.\n\nOR\n\nAgain $\\boxed{4}$.", "4"),
        ("$\\boxed{0.50}$, that is $\\boxed{1/2}$", "1/2"),
        ("So $x=\\boxed{0}$ or $x=\\boxed{1}$.", "0,1"),
        ("$\\boxed{48}, \\boxed{384}$", "48, 384"),  # a comma alone would be 48384
        ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{7}}", "7"),
    ],
)
def test_the_answer_of_boxes(text: str, answer: str) -> None:
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    "text", ["no box", "\\boxed{4", "First we get \\boxed{3} apples, so later there are \\boxed{4}"]
)
def test_boxes_that_are_no_one_answer_are_bad(text: str) -> None:
    with pytest.raises(BadRow):
        boxed_answer(text)


def test_many_open_boxes_cost_linear_time() -> None:
    with pytest.raises(BadRow):
        boxed_answer("\\boxed{" * 100_000)


def test_the_plan_shows_how_the_first_problem_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", LAYOUTS["gsm8k"][0], {"question": "no answer"})
    words = "\n".join(data_words(compose_train(["data=files", f"data.path={path}"])))
    assert "questions are read from 'question', answers from 'answer', after ####" in words
    assert "answer    4\n" in words and "solution  2+2 = 4" in words and "1 of the first 64 rows are bad" in words
    assert "steps     1 in the middle one of 1 reference solutions (1 to 1)" in words and "100% are one step" in words


def lessons(path: Path | str, **keys: Any) -> list[tuple[str, str]]:
    source = build_lessons(SftDataConfig(**{"kind": "files", "path": str(path), **keys}), seed=0).train
    drawn = [source.next_problem() for _ in range(source.state()["size"])]
    return sorted((problem.prompt, problem.answer) for problem in drawn)


WORKED = "2+2 is twice 2.\n\n\\boxed{4}"
CHAT = [*TURNS, {"role": "assistant", "content": WORKED}]
SHAREGPT = [{"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": WORKED}]


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "What is 2+2?", "solution": WORKED, "answer": "4"},
        {"question": "What is 2+2?", "answer": WORKED},
        {"prompt": "What is 2+2?", "response": WORKED},
        {"prompt": TURNS, "completion": CHAT[-1:]},
        {"messages": CHAT},
        {"conversations": SHAREGPT},
    ],
)
def test_lessons_are_found_in_the_usual_columns_and_in_chats(tmp_path: Path, row: dict[str, Any]) -> None:
    assert lessons(write(tmp_path / "a.jsonl", row)) == [("What is 2+2?", WORKED)]
    assert lessons(parquet(tmp_path / "a.parquet", row)) == [("What is 2+2?", WORKED)]


def test_lessons_come_from_the_files_that_problems_come_from(tmp_path: Path) -> None:
    row, keys = {"q": "What is 2+2?", "s": {"text": WORKED}}, {"question_column": "q", "solution_column": "s.text"}
    (tmp_path / "a.csv").write_text('q,s\n"What is 2+2?","Four,\nsaid twice."\n')
    assert lessons(tmp_path / "a.csv", question_column="q", solution_column="s")[0][1] == "Four,\nsaid twice."
    assert lessons(saved(tmp_path / "saved", row), **keys) == [("What is 2+2?", WORKED)]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert lessons(packed, **keys) == [("What is 2+2?", WORKED)]
    write(tmp_path / "split" / "test.jsonl", {**row, "q": "held out"})
    write(tmp_path / "split" / "train.jsonl", row)
    assert lessons(tmp_path / "split", split="test", **keys) == [("held out", WORKED)]


def test_what_is_no_lesson_is_said_with_the_columns_that_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"problem": "What is 2+2?", "solution": WORKED})
    with pytest.raises(RunFailed, match=r"a.jsonl:1: expected a column 'text', got 'problem', 'solution'"):
        lessons(path, solution_column="text")
    with pytest.raises(RunFailed, match=r"one of the columns solution, .* got 'problem'; set data.solution_column"):
        lessons(write(tmp_path / "b.jsonl", {"problem": "What is 2+2?"}))
    with pytest.raises(RunFailed, match="expected one assistant turn in 'messages', got 2; a lesson is one answer"):
        lessons(write(tmp_path / "c.jsonl", {"messages": [*CHAT, CHAT[-1]]}), solution_column="messages")
    many = write(tmp_path / "d.jsonl", *[{"problem": "p", "solution": ""}] * 3)
    with pytest.raises(RunFailed, match="expected at most 2 bad rows"):
        lessons(many, max_bad_rows=2, question_column="problem", solution_column="solution")
    report = build_lessons(SftDataConfig(kind="files", path=str(write(tmp_path / "e.jsonl", {"messages": CHAT}))), 0)
    assert report.notes[0].endswith("questions are read from 'messages', solutions from 'messages'")
    assert "the system turn of 1 rows is left out" in report.notes[1]
