"""The calculator: checks the arithmetic it can find, passes over what it cannot read, and never calls `eval`."""

import asyncio
import time

import pytest

from capo_ray.config.sections import CriticConfig
from capo_ray.critics import CalculatorJudge, EnsembleJudge, calculate, parse_critique
from capo_ray.critics.equations import check_claims
from capo_ray.protocols import JudgeRequest
from capo_ray.types import Problem


def held(text: str, modulus: int = 0) -> list[bool | None]:
    return [claim.holds for claim in check_claims(text, modulus)]


@pytest.mark.parametrize(
    "text",
    [
        "16 - 3 - 4 = <<16-3-4=9>>9 eggs",
        "She makes 9 * 2 = $<<9*2=18>>18 every day",
        "Total = 3 + 4 = 7",
        "3+4 = 7*2 = 14",
        "10/3 = 3.33",
        "2/3 ≈ 0.67",
        r"$\frac{1}{2} \times 10 = 5$",
        r"\frac{3}{4} + \frac{1}{4} = \boxed{1}",
        r"2^{3} \cdot 5 = 40",
        "(so 3+4=7)",
        "20% of 50 = 10",
        "50% + 50% = 100%",
        "1,000 + 2 = 1,002",
        "- 3 + 4 = 7",
        "1. 3+4 = 7",
        "3 x 4 = 12",
        "3(4) = 12",
        "5 apples * 3 = 15 apples and 15 - 2 = 13",
        "**3 + 4 = 7**",
        "2**3 = 8",
        "-3 + 5 = 2",
        "0.1 + 0.2 = 0.30000000000000004",
        "80 / 26.666666666666668 = 3",
        "41/0.14 = 293",
        "0.97 * 440 = 427 Hz",
        "(3,200 - 4,800) / 4,800 * 100 = -33%",
        r"$(2\cdot\frac32-3) = (3-3)=0$.",
        r"$\frac{5^{2}}{5^{1}} = 5$",
        "So 1+(2+3)=6 and -4+(5+6)=7.",
        "V = (0.1)^3 = 0.001 m^3",
        r"\frac{3}{2} \cdot 10,\!000/12 = 1250",
        "In one hour, there are 60 / 15 = 4 (15 minutes).",
        "0.15 (54) + 0.40 (27) = 8.10 + 10.80 = 18.90",
    ],
)
def test_right_arithmetic_holds_in_any_dress(text: str) -> None:
    claims = held(text)
    assert claims
    assert all(claims)


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 8",
        "so <<16-3-4=8>>8",
        r"\frac{1}{2} + \frac{1}{2} = 2",
        "2^3 = 9",
        "7/2 = 3",
        "3+4 = 8*2 = 16",
        "2 x 3 x 4 = 25",
        "10/3 = 3.43",
        "192*100 = $1920",
        "So r = 116*117 = 13192",
        "90 = 70 + 21",
        r"The product is $650 \cdot 90 = 585000$.",
        r"And \(\frac{1}{2}+\frac{1}{3} = \frac{2}{5}\).",
        "7/2 = 4",
    ],
)
def test_wrong_arithmetic_is_found(text: str) -> None:
    assert False in held(text)


@pytest.mark.parametrize(
    "text",
    [
        "x - 3 = 5",
        "2x + 3 = 7",
        "twice 3 + 4 = 10",
        "1 hour + 30 minutes = 90 minutes",
        "$1 / 2 = 50 cents",
        "f(3) + 1 = 4",
        r"\sqrt{16} + 1 = 5",
        "1 1/2 + 1 = 2.5",
        "at 6:00 + 48 = 6:48",
        "60 / 3/4 = 80",
        "= 20 times 2 people",
        "9^99^99 = 1",
        "1/0 = 2 - 1",
        "there are 7 of them",
        "a_1=1 and a_2=a_1+a_1+1=3",
        r"r_1r_2r_3 = 2^5 = 32, so $V_3=\frac{67}{32}$",
        r"a_{205} = 6 * 2 = 12",
        r"2^8 = 256, so \log_2(256) = 8",
        r"$629_{10}=1*512+1*64+6*8+5$",
        r"\sqrt[3]{\frac{1}{27}} = \frac{1}{3}",
        r"5476/3=1825\frac{1}{3}",
        r"\frac{25}{4} = 6\frac14",
        r"P(X=4) = 35 \times \frac{1}{625}",
        "f(3, 5) = -2(3) + 3(5) = 9",
        "x@y gives 7@4=7*4-2*7",
        r"5\star 1 = 9(5)+2",
        r"$x=\frac{65\pm63}{16}=\frac{128}{16}$",
        "3+2√2=2+2√2+1",
        "we get 4p(1-0)=(5-3)^2",
        r"q(1) = (1^2 - 1)p(1) - 1 = -1",
        "ar=2 and ar^3=6",
        "that 9^2+2^2=97 was wrong",
        "Is 125^2+120^2=117^2?",
        "1 + 2 + ... + 9 + 10 = 55",
        "3 + 4 = 2 (mod 5)",
        r"\frac{279}{99999} = 0.\overline{00279}",
        "5! = 60 * 2",
        "1 and 1/2 + 1 = 2.5",
        "Multiplying it by 4/3 gives the number of novels she wrote = (4/3)*9 = 12",
        "",
    ],
)
def test_what_is_not_plain_arithmetic_is_not_called_wrong(text: str) -> None:
    assert False not in held(text)


def test_the_laptop_worlds_arithmetic_is_modulo_ten() -> None:
    assert held("7*8=6", modulus=10) == [True]
    assert held("4-5=9", modulus=10) == [True]
    assert held("7*8=5", modulus=10) == [False]
    assert held("7*8=6") == [False]


@pytest.mark.parametrize(
    "text",
    [
        r"Total: 54 + 36 + 48 = 138 lines \boxed{138}",
        r"\[ 1344 \div 175 = 7 \quad \text{(quotient)} \]",
        r"\[ g\left(\frac{11}{15}\right) = \frac{-2}{\frac{11}{15} + 1} = \frac{-2}{\frac{26}{15}} \]",
        r"\[!5 = 120 \left(\frac{1}{2} - \frac{1}{6} + \frac{1}{24} - \frac{1}{120}\right)\]",
        "So 5508^3 ≈ 5500^3 and we go on.",
        "145 / 488 ≈ 0.2969",
        r"Gain = (Expected coins after Round 1) × \( \frac{1}{100} = \frac{101}{100} \times \frac{1}{100} \)",
        "\\[ 2 + 1 = 1 \\]\n(False)",
        "Check: 60 = 5^2 + 6^2 = 25 + 36 = 61\n- This does not work.",
        "We get 1 = 1/2 + 1/3 + 1/8, and 23/24 doesn't equal 1. Let's try another combination.",
    ],
)
def test_what_real_solutions_write_is_not_taken_for_a_slip(text: str) -> None:
    # Steps of ProcessBench (2412.06559) that people passed, each of which was flagged once.
    assert False not in held(text)


def test_slips_that_people_overlooked_are_still_found() -> None:
    assert held("6084 * 6084 = 36,997,536") == [False]
    assert held(r"\(1999 \div 31 \approx 64.1613\), which is not an integer") == [False]
    assert held(r"so there are 3 + 4 = \boxed{8}") == [False]
    assert held(r"2 \left(3 + 4\right) = 15") == [False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit", ["1+", "(", "9", "\\frac{", "=1", "3 = 4 ", "<<", "a ", "2^", "1 x ", "**", " ", "-", "1,000", ".", "1/2 "]
)
def test_hostile_text_costs_bounded_time(unit: str) -> None:
    started = time.process_time()
    check_claims(unit * (20_000 // len(unit)) + "=1")
    assert time.process_time() - started < 5


def test_a_response_with_nothing_to_check_abstains() -> None:
    assert parse_critique(calculate(["Let x be even.", "Then x is even."]), 2)[0] is None


def test_only_the_steps_whose_claims_are_false_are_flagged() -> None:
    text = calculate(["3+4=7", "so we think", "7*2=15", "15-1=14"])
    assert parse_critique(text, 4) == (frozenset({2}), None, "")


def test_the_judge_gives_one_vote_that_stands_for_all() -> None:
    judge = CalculatorJudge(CriticConfig())
    problem, request = Problem("p", "q", "1"), JudgeRequest(("3+4=8",))
    (votes,) = asyncio.run(judge.critique(problem, [request], 4))
    assert [v.flagged for v in votes] == [frozenset({0})]
    both = EnsembleJudge(judge, [CalculatorJudge(CriticConfig())])
    (votes,) = asyncio.run(both.critique(problem, [request], 4))
    assert [v.provenance.vote_index for v in votes] == [0, 1]
