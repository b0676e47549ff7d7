"""Our verdicts on GSM8K responses beside those of lm-evaluation-harness: where they agree, and each way they part."""

from __future__ import annotations

import pytest

from capo_ray.answers import extract_answer, fast_equal
from tests.peer_answers import is_right


def ours(response: str, answer: str) -> bool:
    found = extract_answer(response)
    return found is not None and fast_equal(answer, found) is True


ALIKE = [
    ("She sells 9 eggs.\n#### 18", "18", True),
    ("It costs $1,200.\n#### 1,200", "1200", True),
    ("The total is 3 + 4 = 8.\n#### 8", "7", False),
    ("16 - 3 - 4 = 9\n#### 18.", "18", True),
]
PARTED = {  # why: response, answer, (strict, flexible, ours)
    "strict knows no answer but after ####": ("The answer is \\boxed{18}.", "18", (False, True, True)),
    "strict takes the first, and a response may correct itself": ("#### 17\nNo:\n#### 18", "18", (False, True, True)),
    "flexible takes the last number, of whatever": ("#### 18\n\nThat is for 7 days.", "18", (True, False, True)),
    "flexible takes a number nobody called the answer": ("First 9, so she gets 18", "18", (False, True, False)),
    "both compare spellings, we compare values": ("#### 18.00", "18", (False, False, True)),
    "a fraction is no number to both": ("The answer is 1/2.", "0.5", (False, False, True)),
    "the mark without a space": ("####18", "18", (False, True, True)),
}


@pytest.mark.parametrize(("response", "answer", "right"), ALIKE)
def test_plain_gsm8k_responses_are_judged_alike(response: str, answer: str, right: bool) -> None:
    told = (is_right(response, answer, "strict"), is_right(response, answer, "flexible"), ours(response, answer))
    assert told == (right,) * 3


@pytest.mark.parametrize("why", PARTED)
def test_the_ways_in_which_verdicts_part_are_these(why: str) -> None:
    response, answer, told = PARTED[why]
    assert (
        is_right(response, answer, "strict"),
        is_right(response, answer, "flexible"),
        ours(response, answer),
    ) == told


def test_the_peer_reads_the_number_out_of_gsm8ks_own_column() -> None:
    assert is_right("#### 18", "She sells 16 - 3 - 4 = <<16-3-4=9>>9.\n#### 18", "strict")
