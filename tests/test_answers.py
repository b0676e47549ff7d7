"""Extraction, the house rules, and the fast path against math-verify."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.answers import (
    MAX_ANSWER_CHARS,
    choice_letter,
    exact_equal,
    extract_answer,
    extract_choice,
    fast_equal,
    library_equal,
    normalise,
    reference_answer,
    refusal,
    slow_equal,
)
from capo_ray.answers.compare import decide
from capo_ray.answers.constants import value_of
from capo_ray.answers.library import prepare
from tests.examples import examples

GOLDS = Path(__file__).parent / "data" / "answers"


@pytest.fixture(scope="module", autouse=True)
def _library() -> Iterator[None]:
    import logging

    prepare(slow_equal)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{4}, no: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{5} and then \boxed{unfinished", "5"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\fbox{3}", "3"),
        (r"\boxed 9", "9"),
        (r"\boxed{}", None),
        ("2+2 = 4\n#### 1,234", "1,234"),
        (r"#### 4" "\n" r"\boxed{5}", "5"),
        ("The answer is 42.", "42"),
        (r"The final answer is $\frac{1}{2}$ meters.", r"$\frac{1}{2}$"),
        ("**Answer:** 7", "7"),
        ("the answer is 3. No, the answer is 4 dollars.", "4"),
        ("The answer is not 5.", None),
        ("The answer is 6. The answer is not $5$.", "6"),
        ("The answer is not possible.", "not possible"),
        ("The answer is 5, because 4+1 is 5 and 3+3 is 6.", "5"),
        ("The answer is 18 dollars, not 19.", "18"),
        ("The answer is 7 and not -7", "7"),
        ("The answer is 5 h 30 min.", "5 h 30 min"),
        ("The answer is `5`.", "5"),
        ("She makes 26\nA: 26", "26"),
        ("The answer is 2.5", "2.5"),
        ("42", "42"),
        ("I do not know.", None),
        ("", None),
        ("the sum of 3 and 4, both prime, is odd", None),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> hm, well", None),
        ("The answer is 3. " + "Then I looked out of the window. " * 300, "3"),
        ("A: 3\n" + "line\n" * 2000, "3"),
        ("#### 3\n" + "line\n" * 2000, "3"),
        ("The anſwer is 3.", "3"),
        (r"\boxed{2} or \\boxed{3", "2"),
        (r"\boxed{" + "{" * 300 + "x" + "}" * 300 + "}", None),
        ("Tom spent $38 on seeds. #### 38", "38"),
        ("#### 4 at first. Then: #### 5", "5"),
        ("#### Part 1: Add\n#### Part 2: Conclude\nThe answer is 6.", "6"),
        ("The answer is 6.\n\n#### Check\n5+1=6", "6"),
        ("The answer is 6.\n#### 1. Look back", "6"),
        ("#### Answer: **6**", "6"),
        ("#### Final Answer\n6", "6"),
        ("**Final Answer**\n\n$$6$$", "$$6$$"),
        ("The final answer is:\n\n\\[\nx\n\\]", r"\[ x \]"),
        ("__Answer__: 7", "7"),
        ("<think>6</think><answer>\n7\n</answer>", "7"),
        ("<answer>The answer is 7 dollars.</answer> Done.", "7"),
        ("so 7\n<answer>7", "7"),
        (r"\boxed{(1,2)} \text{ and } \boxed{(3,4)}", "(1,2), (3,4)"),
        (r"They are $\boxed{2}$ and $\boxed{3}$.", "2, 3"),
        (r"$x=\boxed{2}$, $y=\boxed{3}$", "2, 3"),
        (r"\boxed{2} as said: $\boxed{2}$ and $\boxed{2}$", "2"),
        (r"\boxed{7} is wrong, I mean \boxed{2}", "2"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("Final Answer: The value of $k$ is $12$.", "$12$"),
        ("Final Answer: She started 3 hours ago.", "3"),
        ("Final Answer: The least $n$ with $2^n > 300$ is 9.", "9"),
        ("Answer: $x$ = 5", "x = 5"),
        ("Answer $9$", "$9$"),
        (r"Interest is $\boxed{255}$. Final Answer: The final answer is $10,455$. I hope so.", "$10,455$"),
        (r"\boxed{6}. This answer is easy to check with 2 and 3.", "6"),
        ("答案是：9", "9"),
        ("故选：C．", "C"),
        ("La respuesta final es $18$.", "$18$"),
        ("Die Antwort ist 18.", "18"),
        ("最終的な答えは18です。", "18"),
    ],
)
def test_the_answer_is_found_in_the_documented_order(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    "piece", [r"\boxed{", "{", "answer is ", "#### ", "A:", "$", " ", "\\", r"\boxed{1}", "\n", "answer "]
)
def test_extraction_from_a_megabyte_stays_quick(piece: str) -> None:
    start = time.process_time()
    extract_answer(piece * (1_000_000 // len(piece)))
    assert time.process_time() - start < 1.0


@given(st.text(alphabet="\\{}boxed#$ aA:.0123456789\nf\ud800", max_size=200))
@settings(max_examples=examples(200))
def test_extraction_and_comparison_take_any_text(text: str) -> None:
    answer = extract_answer(text)
    assert answer is None or answer.strip()
    assert fast_equal("5", text) in (True, False, None)
    choice_letter(text)
    refusal(normalise(text))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (r"\{1,2\}", "(1,2)", False),
        ("(1,2)", r"\{1,2\}", False),
        (r"\left\{1,2\right\}", "[1, 2]", False),
        (r"50\%", "0.5", True),
        ("0.5", "50%", True),
        ("50", r"50\%", True),
        (r"12.5\%", r"\frac{1}{8}", True),
        (r"50\%", "5", False),
        ("east", "seat", False),
        (r"\text{East}", "east", True),
        (r"\text{(C)}", "C", True),
        ("12 3", "15", False),
        ("5", "2(3)", False),
        ("12 345", "12345", True),
        ("5.", "5", True),
        (r"10,\!080", "10080", True),
        (r"5\,000", "5000", True),
        (r"1 1/2", "1.5", True),
        ("1/0", "1/0", True),
        ("x^2+1=0", "x^4+1=0", False),
        ("x^2+1=0", "1=-x^2", True),
        ("5", "x" * (MAX_ANSWER_CHARS + 1), False),
        ("5", "", False),
    ],
)
def test_house_rules_stand_above_the_library(a: str, b: str, same: bool) -> None:
    assert slow_equal(a, b) is same
    assert fast_equal(a, b) in (same, None)


def test_the_library_alone_errs_where_the_house_rules_say_so() -> None:
    assert library_equal("(1,2)", r"\{1,2\}")
    assert not library_equal(r"50\%", "0.5")
    assert library_equal("east", "seat")
    assert library_equal("12 3", "15")
    assert library_equal("2(3)", "5")
    assert library_equal("x^2+1=0", "x^4+1=0", shortcut=False)
    assert library_equal(r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", shortcut=False)
    assert library_equal(r"\frac{2^{2005}+1}{3\cdot2^{2006}}", r"\frac{1}{3\cdot2^{2006}}", shortcut=False)
    assert not slow_equal(r"\frac{2^{2005}+1}{3\cdot2^{2006}}", r"\frac{1}{3\cdot2^{2006}}")
    assert library_equal("4210_7", "4210_8")
    assert library_equal(r"\angle ABC", r"\angle ACB")
    assert library_equal("5", r"5\text{ ft }6\text{ in}")
    assert library_equal("y'+ry=0", "y+ry=0")
    assert library_equal(r"\lambda_{\text{red}}/\sqrt{2}", r"\lambda_{\text{red}}/\sqrt{3}", shortcut=False)
    assert library_equal(r"m\frac{dv}{dt}+bv=f", r"q\frac{dv}{dt}+bv=f", shortcut=False)
    assert library_equal("1,2,2", "1,2")
    assert not library_equal(r"\binom{4}{2}\binom{4}{2}", "36")
    assert not library_equal(r"(-\infty,3)", "x<3")
    assert not library_equal(r"\frac{37}{4}m", r"\frac{37m}{4}")  # taken for metres; no house rule mends it


KINDS = {
    "a base is part of a numeral": [
        ("4210_{7}", "4210_7", True),
        ("4210_7", "4210_8", False),
        ("AB_{16}", "AB_{12}", False),
        ("52_8", "52", True),
    ],
    "two amounts are not the first of them": [
        ("5", r"5 \text{ hours and } 30 \text{ minutes}", False),
        ("5", r"5\text{ ft }6\text{ in}", False),
        (r"2\text{ m }30\text{ cm}", r"2\text{ m } 30 \text{ cm}", True),
    ],
    "points have an order": [
        (r"\angle ABC", r"\angle CBA", True),
        (r"\angle ABC", r"\angle ACB", False),
        (r"\overrightarrow{AB}", r"\overrightarrow{BA}", False),
        ("y'=y", "y=y", False),
        (r"\lambda_{\text {red}} / \sqrt{2}", r"\lambda_{\text{red}} / \sqrt{3}", False),
        (r"m\frac{dv}{dt}+bv=f", r"q\frac{dv}{dt}+bv=f", False),
    ],
    "units and currencies may be left out": [
        ("10", "10 weeks", True),
        ("10", "10 cm^2", True),
        ("10", r"10~\mathrm{cm}^{2}", True),
        ("9 (apples)", "9", True),
        ("20 $cm^{2}$", r"20\text{ cm}^2", True),
        (r"$36\sqrt{7}cm^{3}$", r"36\sqrt{7}", True),
        ("60", "60 km/h", True),
        (r"16\pi", r"16\pi\text{ cm}^2", True),
        ("9", "9页", True),
        ("30", "£30", True),
        ("30", r"30\,€", True),
        ("30", r"\pounds 30", True),
        (r"\$36", "36", True),
        ("4", "4x", False),
        ("30", "€31", False),
        (r"4-\mathrm{i}", "4", False),
    ],
    "percent is a word too": [
        (r"28\%", "28 percent", True),
        (r"12.5\%", r"12.5\text{ percent}", True),
        ("0.28", "28 pct", True),
        (r"45\%", "44 percent", False),
    ],
    "e-notation is a number": [
        ("4.5e33", r"4.5 \times 10^{33} \text{ erg/s}", True),
        ("1e-3", "0.001", True),
        ("1E3", "1000", True),
        (r"3.6 \cdot 10^{-7}", "3.6e-7", True),
        ("3.83e35", r"3.83\times 10^{36}", False),
    ],
    "small quantities differ by ratio": [
        (r"6.63\times10^{-34}", r"6.62\times10^{-34}", False),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", False),
        ("10^{-12}", "0", False),
        (r"1.6\times10^{-19}", r"16\times 10^{-20}", True),
        (r"\frac{1}{3}", "0.333333", True),
        (r"\frac{1}{3}", "0.33", False),
    ],
    "decimal commas stand where the other side has a point": [
        ("3.14", "3,14", True),
        ("1.22", "1{,}22", True),
        ("0.111", "0,111", True),
        ("35", "3,5", False),
    ],
    "repeating decimals are fractions": [
        (r"\frac13", r"0.\overline{3}", True),
        (r"0.2\overline{3}", r"\frac{7}{30}", True),
        (r"0.\overline{42}", "0.42", False),
        (r"0.\overline{09}", r"0.\overline{9}", False),
    ],
    "one set in several notations": [
        (r"(-\infty,3)", "x<3", True),
        ("[2,5]", r"2\le x\le 5", True),
        (r"\{x|-2\le x<1\}", "[-2,1)", True),
        (r"\{x\mid -2\le x<1\}", r"\{x|-2\leq x < 1\}", True),
        (r"(-\infty,0)\cup(0,\infty)", r"x\ne 0", True),
        (r"(-\infty,-1)\cup(1,\infty)", r"x<-1 \text{ or } x>1", True),
        ("(1,3)", r"x>1 \text{ and } x<3", True),
        (r"\mathbb{R}", r"\text{all real numbers}", True),
        ("(2,5)", r"2<x\le 5", False),
        ("x<3", "y<3", False),
        ("x<3", "x<4", False),
        (r"(-\infty,3)", r"(-\infty,3]", False),
    ],
    "unicode is typography": [
        (r"10-2\sqrt5", "10 - 2√5", True),
        ("x^2", "x²", True),
        (r"\frac12", "½", True),
        ("-7", "–7", True),
        ("(1,2)", "（1，2）", True),
        (r"60\%", "60％", True),
        (r"\textcircled{1}\textcircled{3}", "①③", True),
        ("x^2", "x³", False),
    ],
    "white space and braces say nothing": [
        (r"A \cup B", r"A\cup B", True),
        (r"\{x|x=3k,k\in \mathbb{Z}\}", r"\{x|x=3k, k\in\mathbb{Z}\}", True),
        (r"\triangle ABC", r"\triangle  ABC", True),
        (r"A \cup B", r"A\cap B", False),
    ],
    "lists have no order and their commas a blank": [
        ("48, 384", "384, 48", True),
        ("48, 384", r"48 \text{ and } 384", True),
        ("$48$, $384$", "384, 48", True),
        ("100, 200", "100200", False),
        ("48, 384", "48, 385", False),
        ("1;2", "2, 1", True),
        ("1,234", "1234", True),
        ("1,234", "1, 234", False),
        ("(2,1),(3,1)", "(3,1), (2,1)", True),
        ("p=5,q=2;p=7,q=2", "(5,2),(7,2)", True),
        ("{2,3,5}", r"\{2,3,5\}", True),
        ("1,2,2", "1,2", False),
        ("1,2,2", "2,1,2", True),
        ("1,2,2", r"\{1,2\}", True),
    ],
    "plus and minus are two answers": [
        (r"x=\frac{-1\pm\sqrt{13}}{4}", r"\frac{-1+\sqrt{13}}{4},\frac{-1-\sqrt{13}}{4}", True),
        (r"\pm 2, \pm 3", "-3,-2,2,3", True),
        (r"y=\pm\sqrt{3}x", r"y=\sqrt{3}x \text{ and } y=-\sqrt{3}x", True),
        ("3", r"\pm 3", False),
        (r"\pm 3", "3", False),
    ],
    "the name of an answer may be left out": [
        (r"$m_{\max }=n^{2}-n-1$", "n^2-n-1", True),
        (r"f(x)=x \text{ for all } x", "f(x)=x", True),
        (r"P(A)=\frac13", r"\frac{1}{3}", True),
        ("x=48, 384", "48, 384", True),
        ("x=5", "y=5", False),
        ("f(x)=0", r"\forall x>0, f(x)=0", False),
    ],
    "code is read as a formula": [
        (r"\frac{\pi}{2}", "pi/2", True),
        ("e^{16}-1", "-1 + exp(16)", True),
        ("x^2+1", "x**2 + 1", True),
        ("-1./3", r"-\frac13", True),
        ("np.pi/2", r"\frac{\pi}{2}", True),
        (r"\sqrt{17}", "sqrt(17)", True),
        (r"\frac{\pi}{4}", "pi/3", False),
    ],
    "dress is not the answer": [
        ("42", r"\bf 42", True),
        ("42", r"\color{red}{42}", True),
        ("42", r"\text{Answer: }42", True),
        ("42", r"\begin{array}{c}42\end{array}", True),
        ("42", r"\Large 42", True),
        (r"\mathrm{e}^2", "e^2", True),
        (r"2-\mathrm{i}", "2+i", False),
    ],
    "one thing has several names": [
        (r"\emptyset", r"\varnothing", True),
        (r"\varnothing", r"\{\}", True),
        ("(1,-1,2)", r"\langle1,-1,2\rangle", True),
        (r"\text{B, C, D}", "B,C,D", True),
        ("3:4", r"3 \text{ to } 4", True),
        ("C_5^2", "10", True),
        (r"\emptyset", r"\{0\}", False),
    ],
    "millions are counted or left out": [
        ("1000000", r"1 \text{ million}", True),
        (r"\$5 \text{ million}", "5,000,000", True),
        ("1,360,000", "1.36 million dollars", True),
        ("2.5 billion", r"2500 \text{ million}", True),
        ("5", "5 million", True),
        ("5 million", r"5 \times 10^6", True),
        ("5000", "5 million", False),
        ("5 million", "6 million", False),
        ("5 million", "5 billion", False),
        ("0.5", r"0.0005 \text{ thousand}", True),
    ],
    "morning and evening are no units": [
        (r"10:30 \text{ a.m.}", r"10:30 \text{ p.m.}", False),
        (r"10:30 \text{ a.m.}", "10:30 AM", True),
        (r"7 \text{ p.m.}", "7:00 PM", True),
        ("2:30 PM", r"2:30 \text{ pm}", True),
        ("2:30 PM", "2:30", True),
        ("2:30", "2:31 pm", False),
        (r"5 \text{ pm}", "5", True),
        ("2am", "2 a m", True),
    ],
    "factorials of letters are looked at": [
        (r"\binom{n}{k}", r"\frac{n!}{k!(n-k)!}", True),
        (r"\frac{n!}{2}", r"\frac{n!}{3}", False),
        ("n!", "(n+1)!", False),
        (r"C_{40}^{4}\cdot C_{20}^{2}", r"\binom{40}{4}\binom{20}{2}", True),
    ],
}


@pytest.mark.parametrize(("rule", "pairs"), KINDS.items())
def test_one_answer_in_the_spellings_that_models_and_data_use(rule: str, pairs: list[tuple[str, str, bool]]) -> None:
    for a, b, same in pairs:
        assert slow_equal(a, b) is same, (rule, a, b)
        assert fast_equal(a, b) in (same, None), (rule, a, b)
        assert refusal(normalise(b), normalise(a)) is None


@pytest.mark.parametrize(
    "piece",
    [r"\bf{", "{", "$", r"\text{", ",", "1,", r"\pm", "and ", "=", "(", "x<", r"\cup", "9.", "^{", "√", "½", "!"],
)
def test_a_long_answer_of_anything_is_compared_quickly(piece: str) -> None:
    start = time.process_time()
    fast_equal("5", piece * (2000 // len(piece)))
    fast_equal("1,2", piece * (1000 // len(piece)) + "1")
    refusal(normalise(piece * (1000 // len(piece))))
    assert time.process_time() - start < 0.5


def _spellings() -> st.SearchStrategy[str]:
    integers = st.one_of(st.integers(-20, 20), st.integers(-(10**7), 10**7))
    small = st.integers(1, 12)
    return st.one_of(
        integers.map(str),
        integers.map(lambda n: f"{n:,}"),
        integers.map(lambda n: f"{n}.0"),
        integers.map(lambda n: f"{n / 100}"),
        integers.map(lambda n: f"{n}\\%"),
        integers.map(lambda n: f"x={n}"),
        integers.map(lambda n: f"{n}\\text{{ cm}}^2"),
        integers.map(lambda n: f"{n}^\\circ"),
        integers.map(lambda n: f"00{abs(n)}"),
        st.tuples(small, small).map(lambda p: f"{p[0]}/{p[1]}"),
        st.tuples(small, small).map(lambda p: f"-\\dfrac{{{p[0]}}}{{{p[1]}}}"),
        st.tuples(small, small).map(lambda p: f"{p[0] / p[1]:.6f}"),
        st.tuples(small, small).map(lambda p: f"{p[0] / p[1]:.8f}"),
        st.tuples(small, small).map(lambda p: f"{p[0]}\\frac{{{min(p)}}}{{{max(p) + 1}}}"),
        st.floats(-3, 3).map(lambda x: f"{x:.7f}"),
    )


@given(_spellings(), _spellings())
@settings(max_examples=examples(150))
def test_the_fast_path_never_disagrees_with_the_slow_one(a: str, b: str) -> None:
    fast = fast_equal(a, b)
    if fast is not None:
        assert fast is slow_equal(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [("1/3", "0.333333"), ("1/3", "0.33333"), ("2.5", "2.4999999"), ("0.5000005", "0.5000004"), ("0.1", "1/10")],
)
def test_near_the_librarys_rounding_the_fast_path_is_silent_or_right(a: str, b: str) -> None:
    assert fast_equal(a, b) in (None, slow_equal(a, b))


def _lists() -> st.SearchStrategy[str]:
    entries = st.lists(st.sampled_from(["1", "2", "-1", "0.5", "1/2", "2.0", "10"]), min_size=1, max_size=4)
    brackets = st.sampled_from([("(", ")"), ("[", "]"), ("(", "]"), ("\\{", "\\}"), ("", "")])
    return st.tuples(brackets, entries).map(lambda p: p[0][0] + ",".join(p[1]) + p[0][1])


@given(_lists(), _lists())
@settings(max_examples=examples(100))
def test_the_fast_path_agrees_on_lists_of_numbers_too(a: str, b: str) -> None:
    fast = fast_equal(a, b)
    if fast is not None:
        assert fast is slow_equal(a, b)


@given(_spellings(), st.sampled_from([2, 4, 5, 100]))
@settings(max_examples=examples(60))
def test_equal_values_in_other_spellings_agree_on_both_paths(a: str, factor: int) -> None:
    from capo_ray.answers.numbers import read_number

    number = read_number(normalise(a))
    if number is None:
        return
    value = number.value * (factor / 100 if number.percent else 1)
    for b in (
        f"{value}",
        f"\\frac{{{value.numerator * factor}}}{{{value.denominator * factor}}}" if hasattr(value, "numerator") else "1",
    ):
        fast = fast_equal(a, b)
        assert fast is None or fast is slow_equal(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [("x+1", "x+2"), (r"3\sqrt{13}", r"2\sqrt{13}"),
     ("(1,2)", "(1,3)"), ("3+2i", "3-2i"), ("5", "2x"), ("[0,1]", "[0,2]"),
     (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"), ("y=2x", "y=3x"), ("1,2", "3"),
     (r"\frac{\pi}{2}", "1.57"), ("x+1", "1+x"), ("(1,2)", "1,2"), ("2,1", "1,2"), (r"2\sqrt{2}", r"\sqrt{8}"),
     (r"x\in[1,2]", "[1,2]"), (r"(0,9)\cup(9,36)", "(0,36)"), ("ab", "ba"), (r"2\pi", "6.283185"), ("x=5", "y=5")],
)  # fmt: skip
def test_the_numeric_witness_changes_no_verdict_of_the_library(a: str, b: str) -> None:
    assert library_equal(a, b) == library_equal(a, b, shortcut=False)


def _formulas() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(["1", "2", "7", "2.5", "x", "y", "n", "e", "i", "m", "t", "\\pi", "3x", "\\sqrt2", "x^2"])

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        two = st.tuples(inner, inner)
        forms = ("{}+{}", "{}-{}", "\\frac{{{}}}{{{}}}", "({})({})", "{}\\cdot {}", "({},{})", "{} {}")
        return st.one_of(*(two.map(lambda p, form=form: form.format(*p)) for form in forms), inner.map("2({})".format))

    return st.recursive(atoms, grow, max_leaves=5)


@pytest.mark.slow
@given(_formulas(), _formulas(), st.booleans())
@settings(max_examples=examples(200), derandomize=True)
def test_formulas_told_apart_by_value_are_unequal_to_the_library(a: str, b: str, near: bool) -> None:
    b = f"{a}+{b}" if near else b
    if fast_equal(a, b) is False and decide(normalise(a), normalise(b)) is None:  # no house rule spoke
        assert not library_equal(normalise(a), normalise(b), shortcut=False)


def _shapes() -> st.SearchStrategy[str]:
    ends = st.sampled_from(["0", "1", "2", "-3", "2.5", "7/2", r"\frac{1}{2}", r"\sqrt{2}", r"\pi", "2.0"])
    lows, highs = st.one_of(ends, st.just(r"-\infty")), st.one_of(ends, st.just(r"\infty"))
    spans = st.tuples(st.sampled_from("(["), lows, highs, st.sampled_from(")]")).map(
        lambda p: f"{p[0]}{p[1]},{p[2]}{p[3]}"
    )
    unions = st.lists(spans, min_size=1, max_size=3).map(r"\cup".join)
    entries = st.one_of(ends, st.tuples(ends, ends).map(lambda p: rf"{p[0]}\pm{p[1]}"))
    lists = st.lists(entries, min_size=1, max_size=3).map(",".join)
    cells = st.lists(ends, min_size=4, max_size=4)
    terms = st.tuples(st.sampled_from(["", "2", "-3"]), st.sampled_from("xyn")).map("".join)
    sides = st.one_of(ends, terms, st.tuples(terms, ends).map("+".join))
    return st.one_of(
        unions,
        unions.map(lambda text: rf"x\in {text}"),
        lists,
        lists.map(lambda text: rf"\{{{text}\}}"),
        cells.map(lambda c: rf"\begin{{pmatrix}}{c[0]}&{c[1]}\\{c[2]}&{c[3]}\end{{pmatrix}}"),
        cells.map(lambda c: rf"\begin{{pmatrix}}{c[0]}\\{c[1]}\end{{pmatrix}}"),
        st.tuples(sides, sides).map("=".join),
        st.tuples(terms, ends).map(lambda p: f"({p[0]}+{p[1]})({p[1]}-{p[0]})"),
        st.sampled_from([r"\text{east}", r"\text{even}", r"\text{x}", "xyz", "3@", "5{", r"2\}", "½", "x=1=2`"]),
    )


@pytest.mark.slow
@given(_shapes(), _shapes(), st.booleans())
@settings(max_examples=examples(150), derandomize=True)
def test_answers_of_two_kinds_or_shapes_are_told_apart_only_where_the_library_does(a: str, b: str, swap: bool) -> None:
    b = a.replace("2", "5", 1) if swap else b
    if fast_equal(a, b) is False and decide(normalise(a), normalise(b)) is None:
        assert not library_equal(normalise(a), normalise(b), shortcut=False)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"(0,9)\cup(9,36)", r"(0,9)\cup(4,36)"),
        (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2)\cup(6,\infty)"),
        (r"[0,\infty)", r"(0,\infty)"),
        ("(3,4]", "(3,5]"),
        ("(3,4]", "3,4"),
        (r"x\in[-2,7]", r"[-2,8]"),
        (r"\{1\pm\sqrt{5},-2\}", r"\{3\pm\sqrt{5},-2\}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "7"),
        ("5x-7y+11z+4=0", "5x-8y+11z+4=0"),
        ("y=2x+3", "y=2x+4"),
        ("7", "x^{17}+3x^2-5=0"),
        (r"\text{even}", r"7\pi"),
        ("(a+5)(b+2)", "(a+5)(b+3)"),
        ("x+1", "x+1@"),
        (r"\frac{1}{2}", r"\frac{1}{2"),
    ],
)
def test_answers_that_look_complicated_are_told_apart(a: str, b: str) -> None:
    assert slow_equal(a, b) is False
    assert fast_equal(a, b) is not True
    assert not library_equal(normalise(a), normalise(b), shortcut=False)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"(-\infty,2.5)\cup(2.5,12)", r"(-\infty,12)"),  # sympy loses the point between float ends
        ("2x=4", r"\{2\}"),  # an equation of one letter stands for its solutions
        ("y=2x+3", "2y=4x+6"),
        (r"\text{xyz}", "1xyz"),  # a product of letters spells a word
        ("15\\mbox{cm}^2", "15\\mbox{c}m}^2"),  # units are cut out with their braces
        ("7", r"5@=x=7"),  # the library reads the last part of a chain alone
        ("x^2+1=0", "x^4+1=0"),  # the slow path knows
    ],
)
def test_the_fast_path_is_silent_where_the_library_may_say_equal(a: str, b: str) -> None:
    assert fast_equal(a, b) is None


@pytest.mark.parametrize(
    "text",
    [
        "1/2x",
        "f(x)",
        "2\\frac{1}{3}",
        "x2",
        "5m",
        "ab",
        "x^10",
        "3!",
        "1,2",
        "\\sin x",
        "2--1",
        "x(y+1)",
        "(" * 9 + "1" + ")" * 9,
    ],
)
def test_formulas_that_can_be_read_in_two_ways_have_no_value(text: str) -> None:
    assert value_of(text) is None


def test_a_simple_formula_has_the_value_that_anyone_would_give_it() -> None:
    assert value_of(r"-\frac{3\sqrt{2}}{2}+2^3") == pytest.approx(8 - 2.12132, abs=1e-4)
    assert value_of("(1)(1)") is None  # math-verify reads 2
    assert value_of("6+9i") is None
    assert value_of(r"11\sqrt2") == pytest.approx(15.5563, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        (r"\text{(C)}", "C"),
        ("D. Paris", "D"),
        ("**A**", "A"),
        ("Paris", None),
        ("", None),
        ("12", None),
        ("A, C", "AC"),
        ("B and D", "BD"),
        ("DB", "BD"),
        ("2", "2"),
        ("option B", "B"),
        ("B - Paris", "B"),
        ("a bit unclear", None),
        ("Both", None),
    ],
)
def test_choice_letters_are_read_in_their_usual_forms(text: str, letter: str | None) -> None:
    assert choice_letter(text) == letter


@pytest.mark.parametrize(
    ("response", "letters"),
    [
        ("The correct option is B.", "B"),
        ("Therefore, B is the correct answer.", "B"),
        ("<answer>(C)</answer>", "C"),
        ("The answer that fits best is (D).", "D"),
        ("The answer is A, C", "AC"),
        ("So option E. #### E", "E"),
        ("B) Paris", "B"),
        ("<think>A?</think>\nC, A\n", "AC"),
        ("B) is wrong, option C is best", "C"),
        ("B) Paris\nC) Rome", None),
        ("I think the answer is hard to tell.", None),
        ("A train leaves at 5.", None),
        ("I think so", None),
        ("The answer is a matter of taste.", None),
    ],
)
def test_a_response_settles_on_options_in_many_phrases_or_on_none(response: str, letters: str | None) -> None:
    assert extract_choice(response)[0] == letters


def test_exact_equality_looks_at_text_alone() -> None:
    assert exact_equal("a  b", " a b ")
    assert not exact_equal("0.5", "1/2")


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^{9}}}",
        "2^{999999999}",
        "10^8!" + "!",
        "(10^8)!",
        "99999999!",
        "(" * 40 + "x" + ")" * 40,
        "(x+y)^{900}",
        r"\int_0^1 x dx",
        "e^{e^{e^{13}}}",
        "10^8!",
        "(9!)!",
        r"\Gamma(10^9)",
        r"\binom{1000000000}{5}",
        ",".join(map(str, range(40))),
        "+".join(f"x^{i}y" for i in range(12)),
        "9" * 70,
        "x^{40}-1",
        r"\sin\cos\sin\cos\sin x",
        "+".join(rf"\sqrt{{{i}}}" for i in range(8)),
        r"\begin{pmatrix}x&1\\y&2\end{pmatrix}^{9}",
        "|x|+|y|+|z|",
        "eval('1+1')",
        "x.__class__",
    ],
)
def test_answers_too_costly_to_look_at_are_refused_with_a_reason(text: str) -> None:
    assert refusal(normalise(text))


@pytest.mark.parametrize(
    "text",
    [
        "2^{10}",
        "2^{2007}",
        "5!",
        "x^{2^{n}}",
        r"\frac{1}{1+\sqrt{2}}",
        "(x+1)^{10}",
        r"\lfloor x\rfloor",
        "10^{10^{3}}",
        "e^{e^{x}}",
        "e^{e}",
        r"\binom{52}{5}",
        "2^{5!}",
        "1,2,3,4,5,6",
        "f'(x)",
        "5'10",
        "3 p.m.",
    ],
)
def test_ordinary_answers_are_not_refused(text: str) -> None:
    assert refusal(normalise(text)) is None


@pytest.mark.parametrize(
    ("text", "reference"),
    [("x^{40}-1", "x^{40}+1"), ("+".join(f"x^{i}y" for i in range(12)), "+".join(f"y^{i}z" for i in range(9))),
     ("9" * 70, "8" * 70), ("x^{5}=1", "y^{5}=1"), (r"\sin x=1", r"\cos x=1"), ("|x|+|y|+|z|", "|x|+|y|")],
)  # fmt: skip
def test_what_the_reference_itself_holds_is_not_refused(text: str, reference: str) -> None:
    assert refusal(normalise(text), normalise(reference)) is None
    assert refusal(normalise(text), "5") or "=" in text


@pytest.mark.parametrize("text", ["x^{5}+x=1", r"\sin x=x^2"])
def test_equations_without_a_known_way_to_solve_them_are_refused_beside_an_equation(text: str) -> None:
    assert refusal(text, "x^2+1=0")
    assert refusal(text, "5") is None


def test_an_unfinished_calculation_is_looked_at_when_the_reference_is_one() -> None:
    assert refusal(r"\sum_{k=1}^{n}k", r"\sum_{j=1}^{n}j") is None


@pytest.mark.parametrize("name", ["gsm8k", "math500"])
def test_gold_answers_equal_themselves_in_a_box_by_every_path(name: str) -> None:
    golds = [reference_answer(answer) for answer in json.loads((GOLDS / f"{name}.json").read_text(encoding="utf-8"))]
    assert len(golds) == {"gsm8k": 1319, "math500": 500}[name]
    for gold in golds:
        boxed = extract_answer(f"So \\boxed{{{gold}}}.")
        assert boxed is not None
        assert fast_equal(gold, boxed) is True
    for gold in sorted(set(golds))[:: 3 if name == "math500" else 8]:  # no exception: the library alone agrees on all
        assert library_equal(normalise(gold), normalise(gold)), gold
