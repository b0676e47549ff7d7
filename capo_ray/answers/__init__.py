"""Final answers as text: find them in a response, and say whether two of them are the same. No process, no device.

    response --extract_answer--> answer --refusal--> (too complex to look at)
                                    |
                                    +--fast_equal--> True | False | None (not certain)
                                                              |
                                              slow_equal (math-verify, only inside a killable child)

`fast_equal` compares plain numbers exactly; formulas are left to math-verify.

Invariant: where `fast_equal` speaks, `slow_equal` says the same. Both read the same house rules (`compare.decide`).
"""

from capo_ray.answers.choice import choice_letter, extract_choice
from capo_ray.answers.compare import MAX_ANSWER_CHARS, decide, exact_equal, fast_equal
from capo_ray.answers.extract import extract_answer, reference_answer
from capo_ray.answers.numbers import number_of
from capo_ray.answers.refusal import refusal
from capo_ray.answers.slow import library_equal, slow_equal
from capo_ray.answers.spelling import normalise

__all__ = [
    "MAX_ANSWER_CHARS",
    "choice_letter",
    "decide",
    "exact_equal",
    "extract_answer",
    "extract_choice",
    "fast_equal",
    "library_equal",
    "normalise",
    "number_of",
    "reference_answer",
    "refusal",
    "slow_equal",
]
