"""The outcome family by hand, its loss presets, and what holds for every method in the table."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from capo_ray.cli.compose import compose_train
from capo_ray.config import CREDIT_METHODS, TrainConfig
from capo_ray.config.credit import DapoConfig, GenormConfig, refuse_other_loss
from capo_ray.credit import assign_credit, audit, scale_batch
from capo_ray.credit.dapo import punish_length
from capo_ray.credit.table import rule_of
from capo_ray.critics.parse import parse_critique
from capo_ray.types import GroupCredit
from scripts.pages.capabilities import capability_matrix
from tests.credit_groups import Member, group
from tests.examples import examples

# one right and three wrong answers of 2, 1, 3 and 2 tokens: mean 1/4, population std sqrt(3)/4
FOUR = group(Member(1, [2]), Member(0, [1]), Member(0, [3]), Member(0, [2]))


def credit_of(method: str, made=FOUR, **keys: object) -> GroupCredit:  # type: ignore[no-untyped-def]
    return assign_credit(made, CREDIT_METHODS[method](**keys))


def firsts(credit: GroupCredit) -> list[float]:
    return [row[0] for row in credit.advantages]


@pytest.mark.parametrize(
    ("method", "right", "wrong"),
    [
        ("grpo", math.sqrt(3), -1 / math.sqrt(3)),  # (3/4) / (sqrt 3 / 4)
        ("gspo", math.sqrt(3), -1 / math.sqrt(3)),
        ("cispo", math.sqrt(3), -1 / math.sqrt(3)),
        ("dapo", math.sqrt(3), -1 / math.sqrt(3)),  # rewards 1 and -1 have the same z
        ("dr_grpo", 3 / 4, -1 / 4),
        ("reinforce_pp", 3 / 4, -1 / 4),
        ("rloo", 1.0, -1 / 3),
    ],
)
def test_advantages_of_the_outcome_family(method: str, right: float, wrong: float) -> None:
    credit = credit_of(method)
    assert firsts(credit) == pytest.approx([right, wrong, wrong, wrong])
    assert [len(row) for row in credit.advantages] == [2, 1, 3, 2]
    assert all(len(set(row)) == 1 for row in credit.advantages)


def test_reinforce_pp_has_one_scale_for_the_whole_batch() -> None:
    config = CREDIT_METHODS["reinforce_pp"]()
    easy = group(Member(1, [1]), Member(0, [1]))  # +-1/2 on one token each
    hard = group(Member(1, [2]), Member(0, [1]), Member(None, [5]))  # +1/2 twice, -1/2 once, one invalid
    scaled = scale_batch([assign_credit(made, config) for made in (easy, hard)], config)
    # tokens: .5 -.5 .5 .5 -.5: mean .1, variance .24
    high, low = 0.4 / math.sqrt(0.24), -0.6 / math.sqrt(0.24)
    assert [firsts(credit) for credit in scaled] == [pytest.approx([high, low]), pytest.approx([high, low, 0.0])]


def test_other_methods_are_left_alone_by_the_batch() -> None:
    config = CREDIT_METHODS["grpo"]()
    credit = assign_credit(FOUR, config)
    assert scale_batch([credit], config) == (credit,)


@pytest.mark.parametrize(
    ("tokens", "expected"), [(80, 0.0), (85, -0.25), (90, -0.5), (99, -0.95), (100, -1.0), (150, -1.0)]
)
def test_overlong_punishment_of_dapo_equation_13(tokens: int, expected: float) -> None:
    assert punish_length(tokens, 100, 20) == pytest.approx(expected)
    assert punish_length(tokens, 0, 0) == 0.0


def test_dapo_tells_short_wrong_answers_from_overlong_ones() -> None:
    made = group(Member(0, [10]), Member(0, [20]), Member(1, [10]))
    credit = assign_credit(made, DapoConfig(overlong_max_tokens=20, overlong_buffer_tokens=5))
    assert [row[0] for row in credit.token_rewards] == [-1.0, -2.0, 1.0]
    # mean -2/3; deviations -1/3, -4/3 and 5/3: variance 42/27
    assert firsts(credit) == pytest.approx([x / (42 / 27) ** 0.5 for x in (-1 / 3, -4 / 3, 5 / 3)])


@pytest.mark.parametrize("reward", [0, 1])
def test_dapo_leaves_out_groups_that_are_all_right_or_all_wrong(reward: int) -> None:
    # 2503.14476, eq. 11: 0 < number right < G; without it, a length would count as much as an answer.
    made = group(Member(reward, [10]), Member(reward, [18]), Member(None, [10]))
    credit = assign_credit(made, DapoConfig(overlong_max_tokens=20, overlong_buffer_tokens=5))
    assert not credit.has_signal and firsts(credit) == [0.0] * 3


def test_dapo_refuses_a_buffer_longer_than_the_limit() -> None:
    with pytest.raises(ValidationError, match="overlong_buffer_tokens"):
        DapoConfig(overlong_max_tokens=10, overlong_buffer_tokens=11)


def test_genorm_adds_the_critics_overall_verdict() -> None:
    made = group(
        Member(1, [1], [[], []], overall=[True, True]),
        Member(0, [1], [[0], [0]], overall=[False, True]),
        Member(0, [1], [None], overall=[None]),
    )
    credit = assign_credit(made, GenormConfig(alpha=1.0, beta=2.0))
    # sigmoid(1) + 2 - 1, and sigmoid(1/2) - 1 for half of the verdicts and for none
    assert [row[0] for row in credit.token_rewards] == pytest.approx([1.7310585786, -0.3775406688, -0.3775406688])


def test_genorm_takes_a_steep_sigmoid() -> None:
    made = group(Member(1, [1], [[]], overall=[True]), Member(1, [1], [[0]], overall=[False]))
    credit = assign_credit(made, GenormConfig(alpha=1e4))
    assert credit.token_rewards == ((2.0,), (1.5,))  # sigmoid(0) is 1/2: a verdict of wrong takes nothing off
    assert credit.advantages == ((1.0,), (-1.0,))


def test_genorm_counts_a_no_whose_list_of_wrong_steps_cannot_be_read() -> None:
    # Eq. 3 of 2508.02298 reads the verdict alone: m = 1, 0, 0, so the two wrong answers are alike: z of (a, b, b)
    said = [critique_of(word, listed) for word, listed in (("Yes", ""), ("No", ""), ("No", "[0]"))]
    made = group(*[Member(int(i == 0), [1], [flags], overall=[word]) for i, (flags, word) in enumerate(said)])
    assert firsts(credit_of("grpo_genorm", made)) == pytest.approx([math.sqrt(2), -math.sqrt(0.5), -math.sqrt(0.5)])
    half = group(Member(0, [1], [[], None], overall=[True, False]), Member(0, [1], [None], overall=[None]))
    assert not credit_of("grpo_genorm", half).has_signal  # m = 1/2 for both


def critique_of(word: str, listed: str) -> tuple[list[int] | None, bool | None]:
    """What is read of a critique in the paper's form, with the list of wrong steps or without it."""
    tags = f"\n<incorrect_steps>{listed}</incorrect_steps>" if listed else ""
    flagged, overall, _ = parse_critique(f"Judgment: Is the solution correct (Yes/No)? {word}{tags}", 1)
    return (None if flagged is None else sorted(flagged)), overall


def test_grpo_rewards_the_format_where_it_is_asked_to() -> None:
    made = group(Member(1, [2]), Member(0, [1]), Member(0, [1], extracted=None))
    credit = credit_of("grpo", made, w_format=0.2)
    # 1.2, .2 and 0: mean 7/15, variance (11^2 + 4^2 + 7^2) / (3 * 15^2) = 186/675
    sigma = math.sqrt(186 / 675)
    assert [row[0] for row in credit.token_rewards] == pytest.approx([1.2, 0.2, 0.0])
    assert firsts(credit) == pytest.approx([11 / 15 / sigma, -4 / 15 / sigma, -7 / 15 / sigma])
    assert firsts(credit_of("grpo", made))[1:] == pytest.approx([-1 / math.sqrt(2)] * 2)
    wrong = group(Member(0, [1]), Member(0, [1], extracted=None))
    assert credit_of("grpo", wrong, w_format=0.2).has_signal and not credit_of("grpo", wrong).has_signal


def test_genorm_rewards_the_format_where_it_is_asked_to() -> None:
    made = group(
        Member(0, [1], [[]], overall=[True]), Member(0, [1], [[]], overall=[True], extracted=None), Member(1, [1])
    )
    credit = assign_credit(made, GenormConfig(w_format=0.2))
    # sigmoid(1) - 1 with and without .2, and sigmoid(1/2) + 1 + .2
    assert [row[0] for row in credit.token_rewards] == pytest.approx([-0.0689414214, -0.2689414214, 1.8224593312])


def test_every_method_has_a_rule_a_config_and_a_preset() -> None:
    for method in CREDIT_METHODS:
        config = compose_train([f"credit={method}"])
        assert config.credit.method == method
        assert callable(rule_of(type(config.credit)))
        refuse_other_loss(config.credit, config.loss)


def test_a_method_under_another_ones_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss\.ratio=sequence"):
        refuse_other_loss(CREDIT_METHODS["gspo"](), TrainConfig().loss)


def test_the_paper_preset_of_capo() -> None:
    config = compose_train(["credit=capo_paper"])
    assert (config.rollout.group_size, config.learner.groups_per_batch, config.learner.num_epochs) == (16, 12, 4)
    assert (config.credit.w_format, config.loss.kl_coef, config.critic.num_votes) == (0.2, 0.01, 4)


@st.composite
def members(draw: st.DrawFn) -> Member:
    """A member with every kind of evidence, so that any rule can read it."""
    lengths = draw(st.lists(st.integers(1, 4), max_size=3))
    numbers = st.floats(-3, 0, allow_nan=False)
    count = len(lengths)
    steps = st.lists(st.integers(0, count - 1), unique=True) if count else st.just([])
    flags = draw(st.lists(st.one_of(st.none(), steps), max_size=3))
    return Member(
        reward=draw(st.sampled_from([0, 1, None])),
        lengths=lengths,
        flags=flags,
        overall=draw(st.lists(st.sampled_from([True, False, None]), min_size=len(flags), max_size=len(flags))),
        answer_logprobs=draw(st.lists(numbers, min_size=count + 1, max_size=count + 1)),
        step_values=draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=count + 1, max_size=count + 1)),
        token_rewards=draw(st.lists(numbers, min_size=sum(lengths), max_size=sum(lengths))),
        turns=draw(
            st.lists(st.tuples(st.sampled_from(["", "a", "b"]), numbers, st.booleans()), min_size=count, max_size=count)
        ),
        hint_gains=draw(st.lists(numbers, min_size=sum(lengths), max_size=sum(lengths))),
        evidence_score=draw(st.floats(0, 1)),
    )


@pytest.mark.slow
@settings(max_examples=examples(100))
@given(
    made=st.lists(members(), min_size=1, max_size=4),
    method=st.sampled_from(sorted(CREDIT_METHODS)),
    progress=st.sampled_from([0.0, 0.3, 1.0]),
    data=st.data(),
)
def test_every_method_is_finite_equivariant_and_blind_to_invalid_members(
    made: list[Member], method: str, progress: float, data: st.DataObject
) -> None:
    config = CREDIT_METHODS[method]()
    credit = assign_credit(group(*made), config, progress)
    assert all(math.isfinite(a) for row in credit.advantages for a in row)
    assert all(math.isfinite(value) for value in audit(group(*made), credit).values())
    order = data.draw(st.permutations(range(len(made))))
    permuted = assign_credit(group(*[made[i] for i in order]), config, progress)
    assert permuted.advantages == tuple(credit.advantages[i] for i in order)
    valid = [i for i, member in enumerate(made) if member.reward is not None]
    alone = assign_credit(group(*[made[i] for i in valid]), config, progress)
    assert alone.advantages == tuple(credit.advantages[i] for i in valid)
    assert all(not any(credit.advantages[i]) for i in range(len(made)) if i not in valid)


OUTCOME_ONLY = sorted(m for m, c in CREDIT_METHODS.items() if not c(method=m).evidence())


@pytest.mark.parametrize("method", OUTCOME_ONLY)
@pytest.mark.parametrize("reward", [0, 1])
def test_outcome_methods_have_no_credit_where_outcomes_agree(method: str, reward: int) -> None:
    assert not credit_of(method, group(*[Member(reward, [n]) for n in (1, 2, 7)])).has_signal


def test_the_page_on_methods_holds_the_matrix_that_the_code_makes() -> None:
    page = Path(__file__).parents[1] / "docs" / "methods.md"
    assert capability_matrix() in page.read_text(encoding="utf-8")
