"""The votes by hand, and early stopping against every way in which the remaining votes could fall."""

from itertools import combinations_with_replacement

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.votes import VOTES, first_wave, is_decided, step_weights
from tests.examples import examples


def votes(*flags: set[int]) -> list[frozenset[int]]:
    return [frozenset(flag) for flag in flags]


@pytest.mark.parametrize(
    ("vote", "expected"),
    [
        ("intersection", (1.0, 0.0, 0.0, 0.0)),
        ("majority", (1.0, 1.0, 0.0, 0.0)),
        ("union", (1.0, 1.0, 1.0, 0.0)),
        ("average", (1.0, 0.5, 0.25, 0.0)),
        ("greedy", (1.0, 0.0, 1.0, 0.0)),
    ],
)
def test_each_vote_over_four_critiques(vote: str, expected: tuple[float, ...]) -> None:
    assert step_weights(votes({0, 2}, {0, 1}, {0, 1}, {0}), 4, vote) == expected


def test_majority_needs_two_of_three_and_two_of_four() -> None:
    assert step_weights(votes({0}, {0}, set()), 1, "majority") == (1.0,)
    assert step_weights(votes({0}, set(), set()), 1, "majority") == (0.0,)
    assert step_weights(votes({0}, {0}, set(), set()), 1, "majority") == (1.0,)


@pytest.mark.parametrize("vote", sorted(VOTES))
def test_no_valid_critique_blames_nobody(vote: str) -> None:
    assert step_weights([], 3, vote) == (0.0, 0.0, 0.0)


def test_an_index_outside_the_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.2, got 3"):
        step_weights(votes({3}), 3, "union")


def test_an_unknown_vote_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="median"):
        step_weights([], 1, "median")
    with pytest.raises(ValueError, match="median"):
        is_decided([], 1, 1, "median")


def all_votes(num_steps: int) -> list[frozenset[int] | None]:
    """Every vote a critic can cast on the steps, None being an invalid one."""
    subsets = [frozenset(s for s in range(num_steps) if mask >> s & 1) for mask in range(2**num_steps)]
    return [None, *subsets]


@settings(max_examples=examples(150))
@given(data=st.data(), num_steps=st.integers(0, 2), remaining=st.integers(0, 3), vote=st.sampled_from(sorted(VOTES)))
def test_a_vote_is_decided_exactly_when_no_completion_differs(
    data: st.DataObject, num_steps: int, remaining: int, vote: str
) -> None:
    cast = data.draw(
        st.lists(st.frozensets(st.integers(0, num_steps - 1)) if num_steps else st.just(frozenset()), max_size=4)
    )
    quorum = data.draw(st.integers(1, 6))
    outcomes = set()
    # Multisets suffice for what is counted; greedy reads the first, so each vote also gets its turn to be first.
    for rest in combinations_with_replacement(all_votes(num_steps), remaining):
        valid = cast + [v for v in rest if v is not None]
        outcomes.add((step_weights(valid, num_steps, vote), len(valid) >= quorum))
        if vote == "greedy":
            outcomes.add(
                (
                    step_weights(cast + [v for v in reversed(rest) if v is not None], num_steps, vote),
                    len(valid) >= quorum,
                )
            )
    assert is_decided(cast, remaining, num_steps, vote, quorum) == (len(outcomes) == 1)


@settings(max_examples=examples(200))
@given(
    num_steps=st.integers(1, 3),
    remaining=st.integers(1, 8),
    quorum=st.integers(1, 9),
    vote=st.sampled_from(sorted(VOTES)),
    cast=st.lists(st.sampled_from([frozenset({0}), frozenset[int]()]), max_size=4),
)
def test_the_first_wave_is_the_least_that_decides_a_clean_response(
    num_steps: int, remaining: int, quorum: int, vote: str, cast: list[frozenset[int]]
) -> None:
    count = first_wave(cast, remaining, num_steps, vote, quorum)
    clean = [cast + [frozenset()] * n for n in range(remaining + 1)]
    decided = [is_decided(flags, remaining - n, num_steps, vote, quorum) for n, flags in enumerate(clean)]
    assert decided[count] and 1 <= count <= remaining
    assert not any(decided[1:count])


def test_two_of_four_decide_a_majority_once_nobody_can_fall_below_half() -> None:
    assert not is_decided(votes({0}, {0}), 2, 2, "majority")  # step 1 could still get two of four
    assert is_decided(votes({0, 1}, {0, 1}), 2, 2, "majority")
    assert is_decided(votes(set()), 3, 2, "intersection")  # one clean critique ends an intersection
