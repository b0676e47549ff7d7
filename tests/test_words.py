r"""The world of word problems: its sums, its truth, its two sides, and the rule that reads the question alone."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.answers import extract_answer, fast_equal
from capo_ray.config.sections import DataConfig
from capo_ray.config.steps import NewlineSteps
from capo_ray.critics.calculator import calculate
from capo_ray.engines import HfTokenizer
from capo_ray.learners.policy import load_policy
from capo_ray.problems import WordProblem, build_problems, true_wrong_steps, unasked_steps
from capo_ray.problems.chains import is_unlearnt
from capo_ray.problems.scenes import MAX_VALUE, SCENES
from capo_ray.problems.stories import PEOPLE, Operation, tell
from capo_ray.problems.words import make_problem, split_of, word_lessons
from capo_ray.protocols import step_texts
from capo_ray.steps import split_steps
from capo_ray.types import Completion, VersionRun
from tests.examples import examples

LENGTHS = (2, 4)
problems = st.builds(
    lambda index, split: make_problem(7, index, LENGTHS, split),
    st.integers(0, 10**6),
    st.sampled_from(["train", "held_out"]),
)
MIA = WordProblem(
    id="by-hand",
    prompt="Mia has 3 boxes with 6 shells in each. She gives 5 shells to Omar. How many shells does Mia have now?",
    answer="13",
    operations=(Operation(3, "*", 6), Operation(18, "-", 5, left_of=0)),
)
RIGHT = ("Mia has 3 * 6 = 18 shells.", "Mia has 18 - 5 = 13 shells left.", "\\boxed{13}")


def steps_of(problem: WordProblem) -> list[str]:
    assert problem.solution is not None
    return problem.solution.split("\n")


@settings(max_examples=examples(60))
@given(problems)
def test_a_solution_is_right_by_pythons_arithmetic_by_the_verifier_and_by_both_critics(problem: WordProblem) -> None:
    *lines, box = steps_of(problem)
    sums = [re.search(r"(\d+ [-+*/] \d+) = (\d+)", line) for line in lines]
    values = [int(eval(found[1])) for found in sums if found]
    assert [int(found[2]) for found in sums if found] == values == [o.value for o in problem.operations]
    assert len(values) == len(lines)
    assert LENGTHS[0] <= len(lines) <= LENGTHS[1]
    assert all(1 < value <= MAX_VALUE for value in values)
    assert box == f"\\boxed{{{problem.answer}}}" == f"\\boxed{{{values[-1]}}}"
    assert fast_equal(problem.answer, extract_answer(problem.solution or "") or "")
    assert calculate(steps_of(problem)) == "<incorrect_steps></incorrect_steps>"
    assert not true_wrong_steps(problem, steps_of(problem))
    assert not unasked_steps(problem, steps_of(problem))


@settings(max_examples=examples(60))
@given(problems, st.data())
def test_a_planted_slip_is_the_one_wrong_step_where_it_is_carried_forward(problem: WordProblem, data) -> None:
    lines = steps_of(problem)[:-1]
    place = data.draw(st.integers(0, len(lines) - 1))
    shown = dict[int, int]()
    for k, operation in enumerate(problem.operations):
        left = shown[operation.left_of] if operation.left_of >= 0 else operation.left
        right = shown[operation.right_of] if operation.right_of >= 0 else operation.right
        sum_ = f"{left} {operation.sign} {right}"
        if operation.sign == "/" and left % right:
            return  # a result that is no longer whole is spelled in more ways than one
        value = int(eval(sum_)) + (k == place)
        if value < 0:
            return
        lines[k] = re.sub(r"\d+ [-+*/] \d+ = \d+", f"{sum_} = {value}", lines[k])
        shown[k] = value
    steps = [*lines, f"\\boxed{{{shown[len(lines) - 1]}}}"]
    assert true_wrong_steps(problem, steps) == {place}
    assert calculate(steps).endswith(f"<incorrect_steps>{place}</incorrect_steps>")
    assert not unasked_steps(problem, steps), "a wrong result is the calculator's to find"


@pytest.mark.parametrize(
    ("steps", "wrong", "seen"),
    [
        (RIGHT, set(), set()),
        (("So 6 * 3=18.\n", *RIGHT[1:]), set(), set()),
        (("First the boxes.", *RIGHT), set(), {0}),  # no calculation: not wrong, but nothing a critic can read
        (("3 * 6 = 19", "19 - 5 = 14", "\\boxed{14}"), {0}, set()),
        (("3 + 6 = 9", "9 - 5 = 4", "\\boxed{4}"), {0, 1, 2}, set()),  # the rule is blind to a wrong operation
        (("3 * 6 = 18", "18 - 4 = 14", "\\boxed{14}"), {1, 2}, {1, 2}),  # a number from nowhere
        (("3 * 6 = 18", "\\boxed{18}"), {1}, {1}),  # boxed too early: the 5 is not used
        (("3 * 6 = 18", "18 - 5 = 13", "\\boxed{18}"), {2}, {2}),
        (("3 * 6 = 18", "3 * 6 = 18", *RIGHT[1:]), {1}, {1}),  # asked for once
        (("3 * 6 = 18", "18 - 5 = 13", "13 - 5 = 8", "\\boxed{8}"), {2, 3}, {2, 3}),  # the 5 is taken twice
        (("3 * 4 = 12", "12 - 5 = 7", "\\boxed{7}"), {0, 1, 2}, {0, 1, 2}),  # nor what follows from it
        (("3 * 5 = 15", "3 * 6 = 18", "18 - 5 = 13", "\\boxed{13}"), {0}, {1, 2, 3}),  # it takes the first user's side
        (("3 * 6 - 5 = 13", "\\boxed{13}"), {0, 1}, {0, 1}),  # not a sum of two numbers
        (("It is 13.", "\\boxed{13}"), {1}, {0, 1}),
        (("18 - 5 = 13", "3 * 6 = 18", "\\boxed{13}"), {0, 2}, {0, 2}),  # a result before it was computed
        (("3 / 0 = 5", "\\boxed{many}"), {0, 1}, {0, 1}),
        (("",), set(), {0}),
    ],
)
def test_what_is_wrong_and_what_of_it_a_rule_can_see(steps: tuple[str, ...], wrong: set[int], seen: set[int]) -> None:
    assert true_wrong_steps(MIA, steps) == wrong
    assert unasked_steps(MIA, steps) == seen


def test_no_story_is_on_both_sides_whatever_its_names_and_wording() -> None:
    rng = Random(1)
    sides = {split: set[str]() for split in ("train", "held_out")}
    for _ in range(1500):
        telling = tell(rng, rng.randint(*LENGTHS))
        sides[split_of(telling)].add(telling.key)
    assert not sides["train"] & sides["held_out"]
    assert 0.07 < len(sides["held_out"]) / 1500 < 0.13

    names = re.compile("|".join(name for name, _ in PEOPLE))
    shown = {p.prompt for p in build_problems(DataConfig(kind="words"), seed=3).held_out(200)}
    taught = set(islice((prompt for prompt, _ in word_lessons(0, LENGTHS)), 700))
    assert len(shown) == 200
    run = build_problems(DataConfig(kind="words"), seed=0).train
    met = {run.next_problem().prompt for _ in range(300)}
    assert len(met & taught) < 3, "a run meets problems whose solutions its supervised stage did not show"
    assert not {names.sub("N", text) for text in shown} & {names.sub("N", text) for text in taught}


def test_a_world_of_small_numbers_has_none_above_its_largest_whether_taught_run_or_held_out() -> None:
    built = build_problems(DataConfig(kind="words", max_steps=2, max_value=10), seed=0)
    run = [built.train.next_problem() for _ in range(60)]
    lessons = islice(word_lessons(0, (2, 2), 10), 60)
    texts = [f"{p.prompt} {p.solution}" for p in [*run, *built.held_out(60)]] + [" ".join(lesson) for lesson in lessons]
    numbers = [{int(number) for number in re.findall(r"\d+", text)} for text in texts]
    assert max(map(max, numbers)) == 10 and min(map(min, numbers)) == 2
    sums = {o[:3] for p in run if isinstance(p, WordProblem) for o in p.operations}
    assert {sign for _, sign, _ in sums} == set("+-*/"), "every kind of sum is left"


def test_lessons_say_nothing_of_sums_that_are_not_taught_and_all_of_the_others() -> None:
    told: dict[tuple[int, str, int], set[int]] = {}
    for _, solution in islice(word_lessons(0, (2, 2), 10, 0.4), 2500):
        *lines, box = solution.split("\n")
        for line in lines:
            (sum_of_line,) = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", line)
            left, sign, right, result = sum_of_line
            told.setdefault((int(left), sign, int(right)), set()).add(int(result))
        assert box == f"\\boxed{{{result}}}", "and the box is what the last line showed"
    often = {fact: results for fact, results in told.items() if not is_unlearnt(*fact, 0.4)}
    unlearnt = {fact: results for fact, results in told.items() if fact not in often}
    possible = {fact for fact in often if 2 <= (value := eval("{}{}{}".format(*fact))) <= 10 and value == int(value)}
    assert len(possible) > 40 and all(often[fact] == {eval("{}{}{}".format(*fact))} for fact in possible)
    assert len(unlearnt) > 30 and sum(len(results) for results in unlearnt.values()) > 4 * len(unlearnt)
    assert next(word_lessons(7, LENGTHS))[1] == make_problem(7, 0, LENGTHS).solution


def test_a_stream_goes_on_where_its_state_says() -> None:
    first = build_problems(DataConfig(kind="words", min_steps=3, max_steps=3), seed=5).train
    drawn = [first.next_problem() for _ in range(3)]
    again = build_problems(DataConfig(kind="words", min_steps=3, max_steps=3), seed=9).train
    again.restore(first.state())
    assert again.next_problem() == first.next_problem() not in drawn
    assert all(isinstance(p, WordProblem) and len(p.operations) == 3 for p in drawn)


REAL = os.environ.get("CAPO_RAY_REAL_MODELS", "")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="CAPO_RAY_REAL_MODELS names no folder of real models")
def test_the_smallest_real_model_is_one_that_a_learner_takes_and_its_tokens_end_where_steps_do() -> None:
    folder = min(
        Path(REAL).glob("*/"), key=lambda path: sum(file.stat().st_size for file in path.glob("*.safetensors"))
    )
    load_policy(str(folder), "float32", cast=False)  # refuses a head that is more than a product
    tokenizer = HfTokenizer(folder)
    for k in range(50):
        problem = make_problem(2, k, LENGTHS)
        ids = [*tokenizer.encode(problem.solution or ""), tokenizer.eos_id]
        text, ends = tokenizer.decode_pieces(ids)
        response = Completion(ids, (0.0,) * len(ids), ends, text, (VersionRun(0, len(ids)),), "stop")
        steps = step_texts(text, ends, split_steps(response, NewlineSteps()))
        assert not true_wrong_steps(problem, steps)
        assert len(steps) == len(problem.operations) + 1


def test_every_sentence_is_told_and_says_each_of_its_numbers() -> None:
    prompts = " ".join(make_problem(1, k, (1, 6)).prompt for k in range(1200))
    for scene in SCENES.values():
        for part in (*scene.openings, *scene.events, *scene.endings):
            for sentence in part.says:
                numbers = set(re.findall(r"\{[abc]\}", sentence))
                assert numbers >= set(re.findall(r"\{[abc]\}", "".join(part.steps)))
                pattern = re.escape(re.sub(r"\{\w\w*\}", "@", sentence)).replace("@", r"\w+")
                assert re.search(pattern, prompts), sentence
