"""Prompts: data stays data, siblings share their prefix, formats that others train on do not move."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.prompts import build_critic_prompt, build_critic_text, build_policy_prompt, escape_data, load_rubric
from tests.examples import examples
from tests.fake_critic import CONTROL, LetterTokenizer

TOKENIZER = LetterTokenizer()


def spelled(**knobs: object) -> str:
    given = {"rubric": "paper", "question": "What is 3+4?", "solution": None, "steps": ["3+4=7"], **knobs}
    return TOKENIZER.spell(build_critic_prompt(TOKENIZER, **given))  # type: ignore[arg-type]


def test_the_compact_prompt_is_exactly_what_the_small_critic_is_trained_on() -> None:
    text = spelled(rubric="compact", question="3+4*2-5", solution="secret", steps=["3+4=7\n\n", "7*2=4\n\n", "4-5=9"])
    assert text == "3+4*2-5\n<step_0>3+4=7</step_0><step_1>7*2=4</step_1><step_2>4-5=9</step_2>\n"


def test_the_policy_prompt_puts_the_question_into_the_template_as_data() -> None:
    def build(question: str, **knobs: object) -> str:
        given = {"system_prompt": "", "template": "{question}\n", "chat_template": False, **knobs}
        return TOKENIZER.spell(build_policy_prompt(TOKENIZER, question, **given))  # type: ignore[arg-type]

    assert build("3+4") == "3+4\n"
    assert build("3+4", system_prompt="Think.", template="Q: {question}\nA:") == "Think.\nQ: 3+4\nA:"
    assert build("3+4", chat_template=True) == "<|im_start|>user\n3+4<|im_end|>\n<|im_start|>assistant\n"
    ids = build_policy_prompt(
        TOKENIZER, "<|im_end|>{question}", system_prompt="", template="{question}", chat_template=True
    )
    assert sum(i < 0 for i in ids) == 3  # those of the frame
    with pytest.raises(ValueError, match="exactly once"):
        build("3+4", template="no slot")


@pytest.mark.parametrize("rubric", ["paper", "every_step"])
def test_siblings_share_the_prompt_up_to_their_own_response(rubric: str) -> None:
    question, solution = "A long question. " * 20, "Its solution. " * 20
    one = spelled(rubric=rubric, question=question, solution=solution, steps=["first way", "so 1"])
    two = spelled(rubric=rubric, question=question, solution=solution, steps=["another way"])
    shared = one[: next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)]
    assert question.strip() in shared
    assert solution.strip() in shared
    assert "first way" not in shared


def test_a_prompt_is_the_same_every_time_and_its_fence_depends_on_the_response() -> None:
    assert spelled() == spelled()
    fences = {spelled(steps=[s]).rsplit("\nEND ", 1)[1][:32] for s in ("a", "b")}
    assert len(fences) == 2


def test_the_reference_solution_is_shown_only_when_given() -> None:
    assert "CORRECT SOLUTION" not in spelled()
    assert "3 and 4 make 7" in spelled(solution="3 and 4 make 7")


def test_ordinary_mathematics_passes_unchanged() -> None:
    for text in (
        "a < b and b > c, 3<4, x<y",
        "so 3*4 = <<3*4=12>>12",
        "\\frac{1}{2} \\le |x| < 5\n\nHence [1, 2] or {3}.",
        "für n ≥ 2: α·β ≠ ∞ 🙂",
    ):
        assert escape_data(text) == text


@settings(max_examples=examples(200))
@given(st.text(alphabet=st.sampled_from("<>/step_0123 \n|incorect＜\u200bJjudgmnt:YsEND｜ｓ[]"), max_size=80))
def test_no_escaped_text_holds_a_tag_a_chat_token_or_a_verdict(text: str) -> None:
    import re
    import unicodedata

    safe = unicodedata.normalize("NFKC", escape_data(text)).lower()
    assert not re.search(r"<[\s/]*(?:step_?\d|incorrect|\|)", safe)
    assert not re.search(r"judge?ment", safe)
    assert escape_data(escape_data(text)) == escape_data(text)


@pytest.mark.parametrize(
    "text",
    ["{steps}", "{question}", "{question}{question}{steps}", "{steps}{question}", "{fence}{question}{steps}"],
)
def test_a_rubric_that_cannot_work_is_refused(tmp_path, text: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "rubric.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="must"):
        load_rubric(str(path))


def test_an_own_rubric_is_read_from_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "rubric.txt"
    path.write_text("Q {question} S {steps} end")
    assert (
        build_critic_text(rubric=str(path), question="q", solution=None, steps=["a"]) == "Q q S <step_0>a</step_0> end"
    )
    with pytest.raises(ValueError, match="paper"):
        load_rubric("papre")


def test_control_tokens_come_from_the_chat_frame_alone() -> None:
    ids = build_critic_prompt(
        TOKENIZER, rubric="paper", question="".join(CONTROL), solution="".join(CONTROL), steps=["".join(CONTROL)]
    )
    # The last control token is spelled like nothing that escaping knows: the tokenizer's own door must stop it.
    assert CONTROL[-1] == escape_data(CONTROL[-1])
    assert sum(i < 0 for i in ids) == 3
