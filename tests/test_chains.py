r"""The laptop world: its truth, its lessons and its tokenizers."""

from __future__ import annotations

import random
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.problems.chains import (
    Chain,
    apply,
    demonstrate,
    draw_chain,
    is_unlearnt,
    make_problem,
    parse_chain,
    response_text,
    right_results,
    shown_answer,
    split_of,
    split_steps,
    true_wrong_steps,
    unasked_steps,
)
from capo_ray.problems.chains_lessons import (
    critic_completion,
    critic_lessons,
    critic_prompt,
    fact_lessons,
    policy_lessons,
    read_incorrect_steps,
    with_fault,
)
from capo_ray.problems.chains_tokenizer import build_tokenizer, vocabulary
from capo_ray.types import Problem
from tests.examples import examples

CHAIN = parse_chain("7*8+5-3")
RIGHT = ("7*8=6", "6+5=1", "1-3=8", "\\boxed{8}")
chains = st.builds(
    lambda seed, n: draw_chain(random.Random(seed), n, "train"), st.integers(0, 10**6), st.integers(1, 8)
)


def test_a_chain_is_read_from_left_to_right_without_precedence():
    assert parse_chain("2+3*4").answer == "0"  # (2+3)*4 = 20, not 2+12 = 14
    assert CHAIN.answer == "8"
    assert demonstrate(CHAIN) == RIGHT


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        (RIGHT, set()),
        (tuple(f"{step}\n\n" for step in RIGHT), set()),  # delimiters are no part of a step
        (("7*8=5", "5+5=0", "0-3=7", "\\boxed{7}"), {0}),  # carried forward, not wrong again
        (("7*8=5", "6+5=1", "1-3=8", "\\boxed{8}"), {0, 1}),  # the operand is not what was shown: lucky recovery
        (("7*8=6", "6-5=1", "1-3=8", "\\boxed{8}"), {1}),  # not the problem's operator
        (("7*8=6", "6+4=0", "0-3=7", "\\boxed{7}"), {1}),  # not the problem's digit
        (("7*8=6", "6+5=1", "1-3=8", "\\boxed{3}"), {3}),  # the box differs from the last shown result
        (("7*8=6", "1-3=8", "\\boxed{8}"), {1, 2}),  # a missing step
        (("7*8=6", "\\boxed{6}"), {1}),  # boxed too early
        ((*RIGHT[:3], "8+1=9", "\\boxed{9}"), {3, 4}),  # an extra step
        ((*RIGHT, "8+1=9"), {4}),
        (("7*8=6", "so what", "1-3=8", "\\boxed{8}"), {1, 2}),  # what follows has no shown operand
        (("7*8=6\n6+5=1", "1-3=8", "\\boxed{8}"), {0, 1, 2}),  # two in one are no step
        (("7*8=56", "6+5=1", "1-3=8", "\\boxed{8}"), {0, 1}),
        (("",), {0}),
    ],
)
def test_a_step_is_wrong_for_its_own_fault_only(steps, wrong):
    assert true_wrong_steps(CHAIN, steps) == wrong


@settings(max_examples=examples(50))
@given(chains, st.integers(0, 10**6), st.floats(0, 1))
def test_demonstrations_are_wrong_exactly_where_a_result_was_replaced(chain, seed, error_prob):
    steps = demonstrate(chain, random.Random(seed), error_prob)
    results = [step[-1] for step in steps[:-1]]
    right = right_results(steps)
    assert true_wrong_steps(chain, steps) == {k for k, shown in enumerate(results) if shown != right[k]}
    assert shown_answer(response_text(steps)) == results[-1]
    assert split_steps(response_text(steps)) == steps


@settings(max_examples=examples(50))
@given(chains, st.integers(0, 10**6), st.floats(0.1, 1))
def test_a_misread_step_computes_rightly_what_it_shows_and_is_wrong_where_that_was_not_asked(chain, seed, misread_prob):
    steps = demonstrate(chain, random.Random(seed), 0.0, misread_prob)
    assert [step[-1] for step in steps[:-1]] == list(right_results(steps))[:-1]
    shown = [str(chain.start), *(step[-1] for step in steps)]
    asked = [f"{left}{operator}{digit}" for left, (operator, digit) in zip(shown, chain.operations, strict=False)]
    wrong = {k for k, text in enumerate(asked) if steps[k][:3] != text}
    assert true_wrong_steps(chain, steps) == wrong == unasked_steps(chain, steps)


@settings(max_examples=examples(50))
@given(chains, st.integers(0, 10**6), st.floats(0, 1))
def test_what_a_rule_sees_without_arithmetic_is_all_that_is_wrong_but_results(chain, seed, misread_prob):
    steps = demonstrate(chain, random.Random(seed), 0.5, misread_prob)
    right = right_results(steps)
    results = {k for k in range(len(chain.operations)) if steps[k][-1] != right[k]}
    assert true_wrong_steps(chain, steps) == unasked_steps(chain, steps) | results


@pytest.mark.parametrize(
    "steps, unasked",
    [
        (RIGHT, set()),
        (("7*8=5", "5+5=9", "9-3=0", "\\boxed{0}"), set()),  # results are not looked at
        (("7*8=6", "5+5=0", "0-3=7", "\\boxed{6}"), {1, 3}),
        (("7*8=6", "\\boxed{6}"), {1}),
        (("7*8=6", "so what", "1-3=8", "\\boxed{8}"), {1, 2}),
        ((*RIGHT, "8+1=9"), {4}),
    ],
)
def test_the_steps_that_were_not_asked_for(steps, unasked):
    assert unasked_steps(CHAIN, steps) == unasked
    assert unasked_steps(Problem("q", "How many apples?", "3"), steps) == frozenset()


def test_misread_steps_come_in_every_kind_and_leave_the_draws_of_others_alone():
    rng = random.Random(0)
    kinds = {at for _ in range(200) for at in range(3) if demonstrate(CHAIN, rng, 0.0, 0.5)[1][at] != RIGHT[1][at]}
    assert kinds == {0, 1, 2}
    for seed in range(20):
        assert demonstrate(CHAIN, random.Random(seed), 0.3, 0.0) == demonstrate(CHAIN, random.Random(seed), 0.3)


def test_nothing_is_shown_of_an_unlearnt_fact_and_all_of_the_others():
    facts = [(left, operator, right) for left in range(10) for operator in "+-*" for right in range(10)]
    unlearnt = {fact for fact in facts if is_unlearnt(*fact, 0.25)}
    assert 0.2 < len(unlearnt) / 300 < 0.3 and not any(is_unlearnt(*fact, 0.0) for fact in facts)
    assert unlearnt <= {fact for fact in facts if is_unlearnt(*fact, 0.4)}
    rng, shown = random.Random(0), dict.fromkeys(unlearnt, "")
    for _ in range(3000):
        for step in demonstrate(draw_chain(rng, 8, "train"), rng, unlearnt_frac=0.25)[:-1]:
            fact = (int(step[0]), step[1], int(step[2]))
            if fact in unlearnt:
                shown[fact] += step[-1]
            else:
                assert int(step[-1]) == apply(*fact)
    right = sum(digits.count(str(apply(*fact))) for fact, digits in shown.items()) / sum(map(len, shown.values()))
    assert all(len(set(digits)) >= 8 for digits in shown.values()) and right == pytest.approx(0.1, abs=0.015)


def test_lessons_of_bare_facts_flag_wrong_results_and_nothing_else():
    carried = 0
    for prompt, completion in islice(fact_lessons(0, (2, 8)), 200):
        question, tagged = prompt.strip().split("\n")
        steps = [part.split("<")[0] for part in tagged.split(">")[1::2]]
        wrong = {k for k, s in enumerate(steps[:-1]) if int(s[-1]) != apply(int(s[0]), s[1], int(s[2]))}
        assert read_incorrect_steps(completion, len(steps)) == wrong
        assert [s[1:3] for s in steps[:-1]] == [question[i : i + 2] for i in range(1, len(question), 2)]
        carried += all(a[-1] == b[0] for a, b in pairwise(steps[:-1]))
    assert carried < 10  # about one in ten of those with two operations


@pytest.mark.parametrize("lessons", [fact_lessons, critic_lessons])
def test_a_critique_that_is_taught_wrongly_flags_what_differs_from_the_result_it_gives(lessons):
    changed = told_wrong = right = 0
    pairs = zip(lessons(0, (2, 8)), lessons(0, (2, 8), 0.2), strict=True)
    for (prompt, true), (again, completion) in islice(pairs, 400):
        assert prompt == again, "the responses are the same"
        steps = [part.split("<")[0] for part in prompt.strip().split("\n")[1].split(">")[1::2]]
        given = [part.split(" ")[0][-1] for part in completion.split("<step_")[1:]]
        given_truly = [part.split(" ")[0][-1] for part in true.split("<step_")[1:]]
        told, wrong = read_incorrect_steps(completion, len(steps)), read_incorrect_steps(true, len(steps))
        slips = {k for k in range(len(steps)) if given[k] != given_truly[k]}
        assert told - slips == wrong - slips, "nothing else is judged otherwise"
        assert told & slips == {k for k in slips if steps[k].strip("}")[-1] != given[k]}
        changed, told_wrong, right = changed + len(slips), told_wrong + len(told - wrong), right + len(steps)
    assert changed / right == pytest.approx(0.18, abs=0.03)  # a random digit is the right one in one case of ten
    assert told_wrong > 0


@settings(max_examples=examples(50))
@given(chains)
def test_a_right_response_ends_in_the_answer_and_has_no_wrong_step(chain):
    assert true_wrong_steps(chain, demonstrate(chain)) == frozenset()
    assert shown_answer(response_text(demonstrate(chain))) == chain.answer
    assert parse_chain(chain.prompt) == chain


def test_problems_repeat_by_seed_and_index_and_never_cross_the_split():
    train = [make_problem(seed, index, 2) for seed in range(3) for index in range(300)]
    held_out = [make_problem(0, index, 2, "held_out") for index in range(300)]
    assert train[5] == make_problem(0, 5, 2)
    assert train[5] != train[305]
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert {split_of(p.prompt) for p in held_out} == {"held_out"}
    assert len({p.id for p in train + held_out}) == 1200
    # The split is part of the published results: it must not drift with the code.
    assert [p.prompt for p in train[:3]] == ["0*4*0", "0*5*1", "1+7+0"]


def test_text_that_is_no_chain_is_refused():
    for text in ("", "7", "7+", "77+1", "7/2", "What is 7+2?"):
        with pytest.raises(ValueError, match="expected a chain"):
            parse_chain(text)


def test_the_critic_writes_what_was_asked_and_what_is_right_before_its_judgement():
    steps = ("7*8=6", "6+5=2", "2-3=9", "\\boxed{9}")
    assert critic_prompt(CHAIN.prompt, steps) == (
        "7*8+5-3\n<step_0>7*8=6</step_0><step_1>6+5=2</step_1><step_2>2-3=9</step_2><step_3>\\boxed{9}</step_3>\n"
    )
    assert critic_completion(CHAIN, steps) == (
        "<step_0>*86 Yes<step_1>+51 No<step_2>-39 Yes<step_3>9 Yes\nJudgement: No\n<incorrect_steps>1</incorrect_steps>"
    )
    misread = ("7*8=6", "6*5=0", "\\boxed{0}", "0")
    assert critic_completion(CHAIN, misread).startswith("<step_0>*86 Yes<step_1>+50 No<step_2>-30 No<step_3>- No\n")
    assert critic_completion(CHAIN, RIGHT).endswith(
        "<step_3>8 Yes\nJudgement: Yes\n<incorrect_steps></incorrect_steps>"
    )
    assert right_results(("7*8=6", "?", "\\boxed{6}")) == "6-6"


def test_lessons_repeat_by_seed_and_keep_away_from_held_out_chains():
    first = list(islice(policy_lessons(3, (2, 4), 0.35), 50))
    assert first == list(islice(policy_lessons(3, (2, 4), 0.35), 50))
    critic = list(islice(critic_lessons(3, (2, 4)), 50))
    assert critic == list(islice(critic_lessons(3, (2, 4)), 50))
    prompts = [prompt.split("\n")[0] for prompt, _ in first + critic]
    assert {split_of(prompt) for prompt in prompts} == {"train"}
    assert {(len(prompt) - 1) // 2 for prompt in prompts} == {2, 3, 4}


@settings(max_examples=examples(50))
@given(chains, st.integers(0, 10**6))
def test_lessons_with_faults_of_form_are_judged_too(chain, seed):
    steps = with_fault(demonstrate(chain), random.Random(seed))
    told = read_incorrect_steps(critic_completion(chain, steps), len(steps))
    assert told == true_wrong_steps(chain, steps)


def test_a_reply_out_of_form_or_range_lists_nothing():
    assert read_incorrect_steps("<incorrect_steps>1,7</incorrect_steps>", 4) is None
    assert read_incorrect_steps("Judgement: No", 4) is None
    assert read_incorrect_steps("<incorrect_steps></incorrect_steps>", 4) == frozenset()


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_decoding_is_the_exact_concatenation_of_tokens(role, tmp_path: Path):
    from transformers import AutoTokenizer

    build_tokenizer(role).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    words = vocabulary(role)[3:]
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choices(words, k=12))
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text == "".join(words[i - 3] for i in ids)
    assert len(tokenizer) == len(vocabulary(role))
    assert tokenizer.bos_token_id is None


def test_lessons_become_few_tokens_and_no_unknown_ones():
    policy, critic = build_tokenizer("policy"), build_tokenizer("critic")
    steps = response_text(demonstrate(CHAIN))
    assert policy.convert_ids_to_tokens(policy.encode(steps))[5:7] == ["\n\n", "6"]
    assert len(policy.encode(steps)) == 3 * 6 + 3
    assert critic.convert_ids_to_tokens(critic.encode("7*8=6")) == ["7", "*8", "=", "6"]
    assert len(critic.encode("<step_31></step_31>Judgement: Yes No<incorrect_steps></incorrect_steps>")) == 7
    for tokenizer, lessons in ((policy, policy_lessons(0, (2, 8), 0.35)), (critic, critic_lessons(0, (2, 8)))):
        for prompt, completion in islice(lessons, 50):
            assert tokenizer.unk_token_id not in tokenizer.encode(prompt + completion)
    assert policy.decode(policy.encode("What is 2x^2?")) == "What is 2x^2?"


def test_the_compact_rubric_shows_the_critic_what_it_was_taught(tmp_path: Path):
    from capo_ray.engines.tokenizer import HfTokenizer
    from capo_ray.prompts import build_critic_prompt

    build_tokenizer("critic").save_pretrained(tmp_path)
    tokenizer = HfTokenizer(tmp_path)
    rng = random.Random(1)
    for index in range(20):
        problem = make_problem(0, index, 6)
        steps = with_fault(demonstrate(problem.chain, rng, 0.3), rng)
        ids = build_critic_prompt(
            tokenizer, rubric="compact", question=problem.prompt, solution=problem.solution, steps=steps
        )
        assert list(ids) == tokenizer.encode(critic_prompt(problem.prompt, steps))


def test_the_critics_parser_reads_what_the_critic_was_taught():
    from capo_ray.critics import parse_critique

    rng = random.Random(2)
    for index in range(50):
        problem = make_problem(0, index, 6)
        steps = demonstrate(problem.chain, rng, 0.3)
        reply = critic_completion(problem.chain, steps)
        truth = true_wrong_steps(problem, steps)
        assert parse_critique(reply, len(steps), "compact") == (truth, not truth, "")


def test_a_chain_can_be_built_by_hand():
    assert Chain(7, (("*", 8), ("+", 5), ("-", 3))) == CHAIN
