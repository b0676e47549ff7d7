"""Synthesis: programs from worked problems by hand, what is refused, what is planted and caught, and the command."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.synthesis_parts import plant_among, plant_copies
from capo_ray.cli import main
from capo_ray.config.curriculum import CurriculumConfig
from capo_ray.config.sections import DataConfig
from capo_ray.problems import build_problems
from capo_ray.protocols import RunFailed
from capo_ray.synthesis import (
    FILTERS,
    Candidate,
    Filters,
    Held,
    NoProgram,
    derived_agreement,
    instantiate,
    plain_solution,
    prompt,
    read_program,
    read_programs,
    read_response,
    solve_again,
)
from capo_ray.synthesis.filters import grams, words_of
from capo_ray.synthesis.programs import MARK, NUMBER, exact
from tests.examples import examples

SAMPLE = Path(__file__).parent / "data" / "gsm8k"
CLIPS = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many in all?"
)
WORKED = "In May she sold 48/2 = <<48/2=24>>24 clips.\nIn all she sold 48+24 = <<48+24=72>>72 clips.\n#### 72"


def rows(name: str) -> list[tuple[str, str]]:
    lines = (SAMPLE / name).read_text(encoding="utf-8").splitlines()
    return [(row["question"], row["answer"]) for row in map(json.loads, lines)]


PROGRAMS = read_programs("train", rows("train.jsonl"))


def number(n: int) -> Fraction:
    return Fraction(n)


# --- programs ---------------------------------------------------------------------------------------------------------


def test_a_worked_problem_is_a_program_of_the_numbers_in_its_question() -> None:
    program = read_program(CLIPS, WORKED)
    assert program.inputs == (48,) and program.results == (24, 72)
    assert program.run({number(48): number(90)}) == (45, 135), "the 2 is a constant, the 24 the first result"
    assert solve_again(program, CLIPS.replace("48", "80")) == 120
    assert solve_again(program, CLIPS.replace("clips", "pins")) is None, "another question"


def test_other_numbers_are_put_in_and_everything_is_worked_out_again() -> None:
    program = read_program(CLIPS, WORKED)
    for seed in range(20):
        made = instantiate(program, random.Random(seed))
        assert made is not None
        n = int(made.question.split(" of her")[0].split()[-1])
        assert n != 48 and n % 2 == 0 and 24 <= n <= 96, "at most twice as much, and half of it is whole"
        assert made.question == CLIPS.replace("48", str(n)) and made.answer == str(n + n // 2)
        assert made.solution == (
            f"In May she sold {n}/2 = <<{n}/2={n // 2}>>{n // 2} clips.\n"
            f"In all she sold {n}+{n // 2} = <<{n}+{n // 2}={n + n // 2}>>{n + n // 2} clips."
        )


@given(st.integers(0, 63), st.floats(1.2, 10), st.integers(0, 2**32))
@settings(deadline=None, max_examples=examples(80))
def test_a_number_given_or_worked_out_stays_near_the_original_s_and_of_its_kind(i: int, span: float, seed: int) -> None:
    program, most = PROGRAMS[i][1], Fraction(str(span))
    made = instantiate(program, random.Random(seed), span)
    if made is None:
        return
    swapped, places = {}, {start for start, *_ in program.places}
    for before, after in zip(*map(NUMBER.finditer, (program.question, made.question)), strict=True):
        old, new = exact(before[0]), exact(after[0])
        if before.start() not in places:
            assert before[0] == after[0], "no input of the program"
            continue
        assert old / most <= new <= old * most and len(str(new)) == len(str(old)), "near, and of as many digits"
        assert new % 5 == 0 or old % 5 != 0 or old == 5, "a multiple of five stays one"
        assert program.question[before.end()] != "%" or old > 100 or new < 100, "a share of less than all stays one"
        swapped[old] = new
    assert sorted(swapped.values()) == [swapped[old] for old in sorted(swapped)], "the smaller stays the smaller"
    told = [exact(result) for _, result in MARK.findall(made.solution)]
    for old, new in zip(program.results, told, strict=True):
        assert 0 < old / most <= new <= old * most
        assert new.denominator == 1 or old.denominator > 1, "whole where it was whole"
    assert solve_again(program, made.question) == told[-1]


@pytest.mark.parametrize(
    ("old", "span", "drawn"),
    [
        (7, 2, [4, 5, 6, 8, 9]),
        (5, 2, [3, 4, 6, 7, 8, 9]),
        (20, 2, [10, 30, 40]),
        (10, 2, [15, 20]),
        (100, 2, [150, 200]),
        (400, 2, [200, 300, 500, 600, 700, 800]),
        (35, 1.5, [25, 30, 40, 45, 50]),
        (13, 1.2, [11, 12, 14, 15]),
        (70, 10, [10, 20, 30, 40, 50, 60, 80, 90]),
    ],
)
def test_what_may_stand_for_a_number(old: int, span: float, drawn: list[int]) -> None:
    program = read_program(f"He has {old} eggs.", f"{old}*11=<<{old}*11={old * 11}>>{old * 11}\n#### {old * 11}")
    made = [instantiate(program, random.Random(seed), span) for seed in range(150)]
    assert sorted({int(one.answer) // 11 for one in made if one is not None}) == drawn


def test_numbers_of_different_kinds_do_not_change_places() -> None:
    program = read_program("He has 20 eggs and 23 figs.", "20+23=<<20+23=43>>43\n#### 43")
    made = [instantiate(program, random.Random(seed)) for seed in range(60)]
    pairs = [list(map(int, NUMBER.findall(one.question))) for one in made if one is not None]
    assert len(pairs) > 50 and all(round_ % 10 == 0 and round_ < other for round_, other in pairs)


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("He has 48 eggs.", "He has 24.\n#### 24", "no marked calculation"),
        ("He eats 1/2 of 48.", "48/2=<<48/2=24>>24\n#### 24", "a time, fraction or ordinal"),
        ("He has 48 and 24.", "48/2=<<48/2=24>>24\n#### 24", "a result is a number of the question"),
        ("He has 48.", "48/2=<<48/2=25>>25\n#### 25", "a marked calculation does not hold"),
        ("He has 48.", "48/2=<<48/2=24>>24\n#### 12", "the answer is not the last result"),
        ("He loses 20% of 48.", "48*.2=<<48*.2=9.6>>9.6\n#### 9.6", "a percentage is written as a decimal"),
        ("He walks for a week.", "7*3=<<7*3=21>>21\n#### 21", "no number of the question is calculated with"),
        ("He has 48.", "48/2=<<48/2=24>>24\nThus 48 is left.\n#### 24", "a line speaks of a number that it does not"),
        ("He has 48.", "1*1=48 so 48/2=<<48/2=24>>24\n#### 24", "a calculation that is not marked"),
        ("He has 48.", "<<__import__('os')=24>>24\n#### 24", "is no plain arithmetic"),
        ("He has 48.", "<<48/0=24>>24\n#### 24", "division by zero"),
    ],
)
def test_what_could_be_read_in_two_ways_is_no_program(question: str, answer: str, why: str) -> None:
    with pytest.raises(NoProgram, match=why):
        read_program(question, answer)


def test_a_number_that_words_stand_for_as_well_stays_as_it_is() -> None:
    program = read_program("He runs 7 km daily. How far in 15 days?", "15*7=<<15*7=105>>105\n#### 105")
    assert program.inputs == (15,), "the 7 of a mark could be the days of a week"


# --- filters ----------------------------------------------------------------------------------------------------------


def good(**changed: str) -> Candidate:
    return replace(Candidate(0, CLIPS, WORKED.partition("\n#")[0], "72", "t", "72"), **changed)  # type: ignore[arg-type]


def test_the_first_filter_that_refuses_counts_a_candidate() -> None:
    held = Held()
    held.add(["A train leaves with 12 people and at each of the next 3 stations 5 more people get on board."])
    filters = Filters(held, derived_agreement, lambda c: 0.5 if "too" not in c.question else 1.0)
    filters.know(["An old one, with 5 eggs?"])
    leak = "a train leaves with 99 people, and at each of the next 8 stations 7 more people get on board!"
    said = [
        filters.admit(one)
        for one in (
            good(), good(answer=""), good(answer="many"), good(solution="It is <<48/2=23>>23, in all <<72=72>>72."),
            good(answer="73"), good(derived="70"), good(question="too easy 48"), good(),
            good(question="an OLD one with 5 eggs"), good(question=leak),
        )
    ]  # fmt: skip
    format_, process, agreement, band, novelty, contamination = FILTERS
    wanted = ["", format_, format_, process, process, agreement, band, novelty, novelty, contamination]
    assert said == wanted
    counts = {"format": 2, "process": 2, "agreement": 1, "band": 1, "novelty": 2, "contamination": 1}
    assert filters.counts() == {"candidates": 10, **counts, "kept": 1}
    assert Filters().not_asked == ("agreement", "band")


def test_words_are_compared_in_small_letters_with_numbers_alike() -> None:
    assert words_of("It's $1,200.50 for 3-year-olds!") == ["its", "#", "for", "#", "year", "olds"]
    assert words_of("1 ,200 and 1 ;50") == ["#", "and", "#"]
    assert grams("five words are a whole") == {"five words are a whole"} and len(grams("w " * 15)) == 1


@pytest.mark.slow
def test_planted_wrong_answers_are_caught_and_right_ones_kept() -> None:
    assert 64 <= len(PROGRAMS) <= 70, "of 80, of which ten were carried because they are none"
    told = plant_among(PROGRAMS, 400)
    assert told["wrong"] > 150 and told["caught"] / told["wrong"] >= 0.99
    assert told["right"] > 150 and told["kept"] / told["right"] >= 0.95


def test_planted_copies_of_held_out_problems_are_all_caught() -> None:
    questions = [question for question, _ in rows("test.jsonl")]
    told = plant_copies(questions)
    assert told["copies_caught"] == told["copies"] > 3 * len(questions)
    held = Held()
    held.add(questions)
    assert not any(held.leaks(question) for question, _ in rows("train.jsonl"))


# --- the command ------------------------------------------------------------------------------------------------------


def synthesize(path: Path, *more: str) -> int:
    words = ["--templates", str(SAMPLE / "train.jsonl"), "--against", str(SAMPLE / "test.jsonl"), "-o", str(path)]
    return main(["synthesize", *words, *more])


def test_the_command_repeats_itself_goes_on_and_refuses_to_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesize(tmp_path / "whole", "-n", "60", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["counts"]["candidates"] == 60 and told["counts"]["kept"] > 40 and told["not_asked"] == ["band"]
    assert synthesize(tmp_path / "cut", "-n", "25") == 0
    path = tmp_path / "cut" / "candidates.jsonl"
    path.write_bytes(path.read_bytes()[:-30])  # torn by a crash
    assert synthesize(tmp_path / "cut", "-n", "60") == 0
    for name in ("candidates.jsonl", "problems.jsonl", "manifest.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    capsys.readouterr()
    assert synthesize(tmp_path / "cut", "--seed", "1") == 1
    assert "was made with seed=0, got 1" in capsys.readouterr().err
    assert synthesize(tmp_path / "cut", "--span", "3") == 1
    assert "was made with span=2.0, got 3.0" in capsys.readouterr().err
    row = json.loads((tmp_path / "whole" / "problems.jsonl").read_text().splitlines()[0])
    assert row["generator"] == "programs" and row["origin"].startswith("train-") and row["agreement"] == 1.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--templates", "t", "--span", "1"], "--span: expected a number over 1, at most 10, got 1"),
        (["--templates", "t", "--span", "nan"], "--span: expected a number over 1, at most 10, got nan"),
        (["--topics", "t", "--span", "3"], "--span is only read with --templates; remove it"),
    ],
)
def test_a_span_that_cannot_be_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["synthesize", *words, "-o", str(tmp_path / "made")]) == 1
    assert said in capsys.readouterr().err


def test_what_is_made_is_read_as_files_and_as_math(tmp_path: Path) -> None:
    assert synthesize(tmp_path / "made", "-n", "40") == 0
    path = str(tmp_path / "made" / "problems.jsonl")
    plain = build_problems(DataConfig(kind="files", path=path, eval_frac=0.5), 0).held_out(9)
    math = build_problems(
        DataConfig(kind="files", path=path, answer_column="solution", answer_marker="\\boxed", eval_frac=0.5), 0
    ).held_out(9)
    assert [(p.prompt, p.answer) for p in plain] == [(p.prompt, p.answer) for p in math] and len(plain) == 9
    assert math[0].solution is not None and "<<" not in math[0].solution


def test_a_bad_generator_gives_a_report_and_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solved = tmp_path / "solved"
    solved.mkdir()
    texts = ["I cannot.", "<problem>p</problem><solution>1+1=3, \\boxed{3}</solution>", "<problem>q</problem>"]
    lines = (json.dumps({"question": f"q{i}", "response": text}) for i, text in enumerate(texts))
    (solved / "responses.jsonl").write_text("".join(f"{line}\n" for line in lines))
    made = tmp_path / "made"
    assert main(["synthesize", "--responses", str(solved), "-o", str(made), "--json"]) == 1
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (told["counts"]["format"], told["counts"]["process"], told["counts"]["kept"]) == (2, 1, 0)
    assert "none of 3 candidates came through" in said.err and not (made / "problems.jsonl").exists()


def test_a_generator_is_asked_the_same_and_its_answers_pass_by_agreement_and_band(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topics = [{"subject": "mathematics", "category": "algebra", "topic": "groups"}, {"topic": "tides"}]
    asked = prompt(3, topics, "No gaps.", 0)
    assert asked == prompt(3, topics, "No gaps.", 0) != prompt(4, topics, "No gaps.", 0) and "No gaps." in asked
    text = "<problem> What is 6*7? </problem>\n<solution>6*7=42\n\n\\boxed{42}</solution>"
    one = read_response(0, text)
    assert (one.question, one.answer) == ("What is 6*7?", "42")
    assert read_response(0, text.replace("6*7=42", "\\boxed{42}")).answer == "", "two boxes"
    for name, rewards in (("generator", [1, 1, 0, 1]), ("policy", [1, 0, 0, 0]), ("strong", [1, 1, 1, 1])):
        (tmp_path / name).mkdir()
        judged = (json.dumps({"question": "What is 6*7?", "reward": r}) for r in rewards)
        (tmp_path / name / "responses.jsonl").write_text("".join(f"{line}\n" for line in judged))
    (tmp_path / "solved").mkdir()
    (tmp_path / "solved" / "responses.jsonl").write_text(json.dumps({"question": "ask", "response": text}) + "\n")
    words = ["synthesize", "--responses", str(tmp_path / "solved"), "--agreement", str(tmp_path / "generator")]
    assert main([*words, "--band", str(tmp_path / "strong"), "-o", str(tmp_path / "a"), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["counts"]["band"] == 1
    assert main([*words, "--band", str(tmp_path / "policy"), "-o", str(tmp_path / "b")]) == 0
    row = json.loads((tmp_path / "b" / "problems.jsonl").read_text())
    assert (row["agreement"], row["pass_rate"]) == (0.75, 0.25)
    path = tmp_path / "topics.jsonl"
    path.write_text("".join(json.dumps(topic) + "\n" for topic in topics))
    assert main(["synthesize", "--topics", str(path), "-n", "3", "-o", str(tmp_path / "prompts.jsonl")]) == 0
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 3


def test_a_run_draws_problems_without_an_end_and_goes_on_from_its_cursor() -> None:
    config = DataConfig(kind="synthetic", path=str(SAMPLE / "train.jsonl"), eval_path=str(SAMPLE / "test.jsonl"))
    first, again = build_problems(config, 3), build_problems(config, 3)
    drawn = [first.train.next_problem() for _ in range(30)]
    assert len({p.prompt for p in drawn}) > 25 and all(p.source == "synthetic" and p.solution for p in drawn)
    assert {p.prompt for p in drawn}.isdisjoint(question for question, _ in rows("train.jsonl"))
    for _ in range(10):
        again.train.next_problem()
    other = build_problems(config, 4)
    other.train.restore(again.train.state())
    assert [other.train.next_problem() for _ in range(20)] == drawn[10:]
    assert len(first.held_out(99)) == 30 and first.held_out(1)[0].prompt == rows("test.jsonl")[0][0].strip()
    wide = build_problems(config.model_copy(update={"number_span": 10.0}), 3).train
    assert [wide.next_problem().prompt for _ in range(5)] != [p.prompt for p in drawn[:5]]
    banded = build_problems(config.model_copy(update={"curriculum": CurriculumConfig(kind="pass_rate")}), 3)
    problem = banded.train.next_problem()
    banded.train.observe(problem, [1, 0])
    assert banded.train.figures()["curriculum/known_problems"] == 1


def test_a_file_without_marked_calculations_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(f'{{"question": "How many {i}?", "answer": "Some. #### 3"}}\n' for i in range(20)))
    with pytest.raises(RunFailed, match=r"data.kind=synthetic: expected worked problems with calculations marked"):
        build_problems(DataConfig(kind="synthetic", path=str(path)), 0)


def test_marks_are_taken_out_and_the_answer_is_boxed() -> None:
    assert plain_solution("2+2=<<2+2=4>>4 eggs.\nThat is all.", "4") == "2+2=4 eggs.\n\nThat is all.\n\n\\boxed{4}"
