"""The critique parser: what real critics write is read, everything else abstains."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_parsers import check_known, check_parse, make_critique
from capo_ray.critics import parse_critique
from capo_ray.prompts import build_critic_text
from tests.examples import examples


@pytest.mark.parametrize(
    ("text", "flagged", "overall"),
    [
        ("Judgement: No\n<incorrect_steps>5, 6</incorrect_steps>", {5, 6}, False),
        ("Judgement: No\n<incorrect_steps><step_5>,<step_6></incorrect_steps>", {5, 6}, False),
        ("Judgement: No\n<incorrect_steps></incorrect_steps>", set(), False),
        ("Judgement: Yes\n<incorrect_steps></incorrect_steps>", set(), True),
        ("Judgement: Yes", set(), True),
        ("Sure!\n**Judgment:** **No**.\nStep 2 slips.\n<incorrect_steps>2</incorrect_steps>\nBye.", {2}, False),
        ("judgement:\nNO <Incorrect_Steps> Step 1 and step 3. </Incorrect_Steps>", {1, 3}, False),
        ("Judgement: No <incorrect\\_steps>[0; 7]</incorrect\\_steps>", {0, 7}, False),
        ("<incorrect_steps>step_4</incorrect_steps>", {4}, None),
        ("<incorrect_steps>none</incorrect_steps>", set(), None),
        ("Judgement: No <incorrect_steps><step_1></step_1></incorrect_steps>", {1}, False),
        (
            "<think>Judgement: Yes, or <incorrect_steps>9</think>Judgement: No <incorrect_steps>3</incorrect_steps>",
            {3},
            False,
        ),
        ("template opened the thinking </think>\nJudgement: Yes", set(), True),
        ("It said 'Judgement: Yes'. Judgement: No\n<incorrect_steps>0</incorrect_steps>", {0}, False),
        ("Judgement: No\n<incorrect_steps><step_1>; <step_7>, 2-3</incorrect_steps> Bye.", {1, 2, 3, 7}, False),
        ("Put them in <incorrect_steps>: <incorrect_steps>2</incorrect_steps>", {2}, None),
    ],
)
def test_what_critics_really_write_is_read(text: str, flagged: set[int], overall: bool | None) -> None:
    assert parse_critique(text, 8) == (frozenset(flagged), overall, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The solution is fine.",
        "Judgement: No",
        "Judgement: perhaps",
        "Judgement: Yes <incorrect_steps>1",
        "Judgement: Yes </incorrect_steps>",
        "Judgement: No <incorrect_steps>3 <incorrect_steps>",
        "<incorrect_steps>8</incorrect_steps>",
        "<incorrect_steps>-1</incorrect_steps>",
        "<incorrect_steps>1.5</incorrect_steps>",
        "<incorrect_steps>4-2</incorrect_steps>",
        "<incorrect_steps>6-8</incorrect_steps>",
        "<incorrect_steps><step_1>; <step_11>, 2-3</incorrect_steps>",
        "<incorrect_steps><step_1>; <step_x>, 2-3</incorrect_steps>",
        "Judgement: No <incorrect_steps>-1</incorrect_steps>",
        "<incorrect_steps>None of the steps are correct</incorrect_steps>",
        "<incorrect_steps>1. 2\n2. 3</incorrect_steps>",
        "<incorrect_steps>2. step_3\n3. step_4</incorrect_steps>",
        "<incorrect_steps>1²</incorrect_steps>",
        "Judgement: Is the solution correct (Yes/No)?",
        "Judgement: Is the solution correct (Yes/No)? No",
        "Judgement (Yes/No): No",
        "Judgement: The solution is correct except for step 2",
        "<incorrect_steps>all</incorrect_steps>",
        "List the wrong steps inside <incorrect_steps> and </incorrect_steps>.",
        "<incorrect_steps>5th</incorrect_steps>",
        "<incorrect_steps>1, then some words</incorrect_steps>",
        "<incorrect_steps>99999999999999999999</incorrect_steps>",
        "<incorrect_steps>٣</incorrect_steps>",
        "<think>Judgement: Yes",
        "Judgement: Yes <think>wait",
        "Judgement: Yes" + " " * 300_000,
    ],
)
def test_what_cannot_be_read_abstains_and_says_why(text: str) -> None:
    flagged, _, reason = parse_critique(text, 8)
    assert flagged is None
    assert reason


@pytest.mark.parametrize("rubric", ["paper", "every_step"])
def test_a_critic_that_repeats_its_prompt_abstains(rubric: str) -> None:
    # SmolLM2-135M does: "… End with the list, for example <incorrect_steps>1,4</incorrect_steps>".
    asked = build_critic_text(rubric=rubric, question="2+2?", solution=None, steps=["2+2 = 5"] * 8)
    last = asked.splitlines()[-1]
    for text in (asked, last, f"Judgement: No\n{last}", last.partition(", or <")[0]):
        assert parse_critique(text, 8, rubric)[0] is None, text
    own = f"{asked}\nJudgement: No\n<incorrect_steps>0</incorrect_steps>"
    assert parse_critique(own, 8, rubric) == (frozenset({0}), False, "")


def test_only_the_paper_rubric_takes_a_right_judgement_for_an_empty_list() -> None:
    assert parse_critique("Judgement: Yes", 3, "paper")[0] == frozenset()
    assert parse_critique("Judgement: Yes", 3, "every_step")[0] is None
    assert parse_critique("Judgement: Yes", 3, "compact")[0] is None


def test_a_truncated_answer_is_believed_only_as_far_as_its_list_is_closed() -> None:
    assert parse_critique("Judgement: Yes", 3, truncated=True)[0] is None
    assert parse_critique("Judgement: No <incorrect_steps>1</incorrect_steps> I", 3, truncated=True)[0] == {1}


@pytest.mark.slow
@settings(max_examples=examples(150))
@given(st.text(max_size=300), st.integers(0, 12))
def test_any_text_is_read_or_abstains_within_range(text: str, num_steps: int) -> None:
    check_parse(text, num_steps)


def test_two_thousand_known_critiques_are_read_as_meant_and_spoilt_ones_abstain() -> None:
    rng = random.Random(7)
    for _ in range(2_000):
        check_known(rng)


def test_two_thousand_mangled_critiques_are_read_or_abstain() -> None:
    rng = random.Random(7)
    outcomes = {check_parse(*make_critique(rng)) for _ in range(2_000)}
    assert outcomes == {"read", "abstained"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "< ",
        "</",
        "judgement",
        "judgement: ",
        "<incorrect_steps>",
        "<think>",
        "step ",
        "<step_1>,",
        "1,",
        "* ",
        "\\",
    ],
)
@pytest.mark.parametrize("frame", ["{}", "Judgement: No <incorrect_steps>{}</incorrect_steps>"])
def test_parse_time_is_linear_in_the_text(unit: str, frame: str) -> None:
    text = frame.format(unit * (190_000 // len(unit)))
    started = time.process_time()
    parse_critique(text, 5)
    # Linear time is below 0.2 s; quadratic time takes minutes.
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("listed", "flagged"),
    [
        ("2-4", {2, 3, 4}),
        ("0, steps 2 to 4", {0, 2, 3, 4}),
        ("<step_1>-<step_2>, 6", {1, 2, 6}),
        ("5–6", {5, 6}),
        ("5‑6, 1−2", {1, 2, 5, 6}),
        ("2-2, 4", {2, 4}),
        ("\n- step 2\n- step 3\n", {2, 3}),
        ("\n• 2\n* 4\n", {2, 4}),
        ("\n1. step_2\n2. step_3\n", {2, 3}),
        ("\n1) **Step 0**\n2) Step 5", {0, 5}),
        ("2、3，4；step_5", {2, 3, 4, 5}),
        ("<step>2</step><step>3</step>", {2, 3}),
        ("<step_2></step_2> <step_4/>", {2, 4}),
        ("#2, #3", {2, 3}),
        ("No errors", set()),
        ("None of the steps", set()),
        ("There are no incorrect steps.", set()),
        ("-1", set()),
        ("无", set()),
    ],
)
def test_lists_are_read_in_the_styles_that_critics_write(listed: str, flagged: set[int]) -> None:
    read, _, _ = parse_critique(f"Judgement: Yes\n<incorrect_steps>{listed}</incorrect_steps>", 8)
    assert read == flagged


@pytest.mark.parametrize(
    ("text", "overall"),
    [
        ("Judgment: Is the solution correct (Yes/No)? Yes", True),
        ("Judgment: Is the solution correct (Yes/No)? No", False),
        ("Judgement (Yes/No): No", False),
        ("Judgement: \\boxed{Yes}", True),
        ("**Judgement:** The solution is correct.", True),
        ("Judgement: The solution is incorrect.", False),
        ("Judgement: The final answer is not correct\nbecause", False),
        ("Judgement: The solution is correct up to step 3", None),
    ],
)
def test_the_verdict_is_read_in_the_papers_own_form_and_as_a_sentence(text: str, overall: bool | None) -> None:
    flagged, said, _ = parse_critique(text, 8)
    assert said is overall
    assert flagged == (frozenset() if overall else None)
    assert parse_critique(f"{text}\n<incorrect_steps>3, 5</incorrect_steps>", 8)[:2] == (frozenset({3, 5}), overall)


def test_an_answer_cut_off_before_its_list_says_so() -> None:
    assert parse_critique("", 8, truncated=True)[2] == "cut off at max_tokens before its list of wrong steps"


def test_tags_in_escaped_letters_are_the_solutions_own_and_never_a_verdict() -> None:
    """So a solution's tags are shown to the critic; one that quotes them has not judged."""
    assert parse_critique("Judgement: No\n&lt;incorrect_steps&gt;2&lt;/incorrect_steps&gt;", 6)[0] is None
