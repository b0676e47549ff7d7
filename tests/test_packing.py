"""Packing: every sample once, weights as the loss defines them, the budget kept, the ranks in balance."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.packing import build_batch, computed_tokens, padded_tokens, token_weights
from capo_ray.types import Batch, Sample, TrajectoryKey, VersionRun
from tests.examples import examples

COSTS = {"shared": computed_tokens, "padded": padded_tokens}


def make_sample(index: int, prompt: int, response: int, group: int = 0) -> Sample:
    """Samples of one group whose prompts are as long are siblings; no two of them wrote the same."""
    return Sample(
        key=TrajectoryKey("p", group, index),
        token_ids=(group,) * prompt + (1000 + index,) + tuple(range(100, 99 + response)),
        sampler_logprobs=(-1.0,) * response,
        advantages=(0.5,) * response,
        versions=(VersionRun(0, response),),
    )


def pack(
    samples: list[Sample],
    num_ranks: int = 1,
    budget: int = 64,
    aggregation: str = "sequence_mean",
    packing: str = "shared",
) -> Batch:
    return build_batch(
        samples,
        num_ranks=num_ranks,
        microbatch_tokens=budget,
        aggregation=aggregation,
        max_response_tokens=40,
        packing=packing,
    )


sample_lists = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 40)), min_size=1, max_size=40).map(
    lambda sizes: [make_sample(i, p, t) for i, (p, t) in enumerate(sizes)]
)
layouts = st.tuples(st.integers(1, 4), st.integers(1, 200))
packings = st.sampled_from(["shared", "padded"])


@pytest.mark.parametrize("kind", ["entropy_weights", "imitation_weights"])
def test_weights_beside_the_advantages_are_all_or_none(kind: str) -> None:
    sample = make_sample(0, 2, 3)
    (((packed,),),) = pack([replace(sample, **{kind: (0.1, 0.0, 0.2)})]).grid
    assert packed.sample.key == sample.key
    with pytest.raises(ValueError, match=rf"one of {kind} per response token, or none at all \(got 2 for 3 tokens\)"):
        pack([replace(sample, **{kind: (0.1, 0.2)})])


@settings(max_examples=examples(60))
@given(sample_lists, layouts, packings)
def test_every_sample_is_in_exactly_one_cell(samples: list[Sample], layout: tuple[int, int], packing: str) -> None:
    batch = pack(samples, *layout, packing=packing)
    packed = [w.sample.key.sample for row in batch.grid for cell in row for w in cell]
    assert sorted(packed) == list(range(len(samples)))


@settings(max_examples=examples(60))
@given(sample_lists, layouts, packings)
def test_no_cell_exceeds_the_budget_unless_it_holds_one_long_sample(
    samples: list[Sample], layout: tuple[int, int], packing: str
) -> None:
    for row in pack(samples, *layout, packing=packing).grid:
        for cell in row:
            assert COSTS[packing](cell) <= layout[1] or len(cell) == 1


@settings(max_examples=examples(60))
@given(sample_lists, layouts, st.sampled_from(["sequence_mean", "token_mean"]))
def test_weights_sum_to_one_whatever_the_layout(
    samples: list[Sample], layout: tuple[int, int], aggregation: str
) -> None:
    batch = pack(samples, *layout, aggregation)
    weights = [x for row in batch.grid for cell in row for w in cell for x in w.loss_weights]
    assert math.isclose(sum(weights), 1.0, rel_tol=1e-9)


@settings(max_examples=examples(40))
@given(sample_lists, layouts, packings)
def test_every_rank_gets_the_same_number_of_microbatches(
    samples: list[Sample], layout: tuple[int, int], packing: str
) -> None:
    batch = pack(samples, *layout, packing=packing)
    assert {len(row) for row in batch.grid} == {layout[0]}
    assert {len(batch.column(rank)) for rank in range(layout[0])} == {len(batch.grid)}


def test_weights_of_two_responses_by_hand() -> None:
    assert token_weights([4, 6], "sequence_mean") == pytest.approx([1 / 8, 1 / 12])
    assert token_weights([4, 6], "token_mean") == pytest.approx([0.1, 0.1])
    assert token_weights([4, 6], "constant_length", 10) == pytest.approx([1 / 20, 1 / 20])


def aged(index: int, response: int, *runs: tuple[int, int]) -> Sample:
    return replace(make_sample(index, 2, response), versions=tuple(VersionRun(v, end) for v, end in runs))


@pytest.mark.parametrize(
    ("aggregation", "full", "half"),
    [
        # L = 4 (whole, 2 of 4 left, none left). sequence_mean: 1/12 a token, 6 tokens are left of 12, so 1/6.
        ("sequence_mean", 1 / 6, 1 / 6),
        ("token_mean", 1 / 6, 1 / 6),
        # 1/(3 x 40) a token; 12 of them weigh 1/10 together, and so do the 6 that are left.
        ("constant_length", 1 / 60, 1 / 60),
    ],
)
def test_tokens_that_are_too_old_have_no_weight_and_the_others_theirs_by_hand(
    aggregation: str, full: float, half: float
) -> None:
    samples = [aged(0, 4, (7, 4)), aged(1, 4, (5, 1), (6, 2), (7, 3), (8, 4)), aged(2, 4, (5, 3), (6, 4))]
    batch = build_batch(
        samples, num_ranks=1, microbatch_tokens=64, aggregation=aggregation, max_response_tokens=40, oldest_version=7
    )
    weights = {w.sample.key.sample: list(w.loss_weights) for w in batch.grid[0][0]}
    assert weights == {0: pytest.approx([full] * 4), 1: pytest.approx([0, 0, half, half])}


def test_what_a_masked_token_had_goes_to_the_whole_batch_and_not_to_its_response() -> None:
    samples = [aged(0, 2, (3, 2)), aged(1, 8, (1, 6), (2, 8))]
    batch = build_batch(samples, num_ranks=1, microbatch_tokens=64, aggregation="sequence_mean", oldest_version=2)
    long, short = batch.grid[0][0]
    # Unmasked 1/4 and 1/16 a token; 2/4 + 2/16 = 5/8 are left.
    assert list(short.loss_weights) == pytest.approx([2 / 5, 2 / 5])
    assert list(long.loss_weights) == pytest.approx([0] * 6 + [1 / 10, 1 / 10])


def test_a_batch_of_old_tokens_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="a token of version 3 or later, got none in 1 samples"):
        build_batch([aged(0, 4, (2, 4))], num_ranks=1, microbatch_tokens=64, aggregation="token_mean", oldest_version=3)


def test_two_ranks_share_the_tokens_of_a_batch_that_would_fit_one_cell() -> None:
    batch = pack([make_sample(i, 5, 5) for i in range(8)], num_ranks=2, budget=1000)
    assert [len(cell) for cell in batch.grid[0]] == [4, 4]


def test_a_cell_computes_a_prompt_once_by_hand() -> None:
    # Two siblings of 5 + 4 and 5 + 2, one of another prompt with 3 + 2: 11 and 5 tokens, in place of 27 padded ones.
    ((cell,),) = pack([make_sample(0, 5, 4), make_sample(1, 5, 2), make_sample(2, 3, 2)]).grid
    assert computed_tokens(cell) == 5 + 4 + 2 + 3 + 2 and padded_tokens(cell) == 27


def wrote_the_same(index: int, sample: Sample) -> Sample:
    return replace(sample, key=TrajectoryKey("p", 0, index))


def test_a_cell_computes_what_siblings_wrote_alike_once_and_a_cut_keeps_them_together() -> None:
    texts = [make_sample(0, 5, 4), make_sample(1, 5, 4)]
    siblings = [wrote_the_same(i, texts[i % 2]) for i in range(6)]
    ((cell,),) = pack(siblings).grid
    assert len(cell) == 6 and computed_tokens(cell) == 5 + 4 + 4 and padded_tokens(cell) == 6 * 9
    cut = pack(siblings, budget=10).grid
    assert [len({tuple(w.sample.token_ids) for w in row[0]}) for row in cut] == [1, 1]
    assert [len(row[0]) for row in cut] == [3, 3]


def test_groups_stay_whole_while_ranks_are_busy_and_are_cut_where_one_would_wait() -> None:
    many = [make_sample(i, 20, 4 + i % 3, group) for group in range(8) for i in range(4)]
    for batch in (pack(many, num_ranks=2, budget=100), pack(many, num_ranks=1, budget=100)):
        homes: dict[int, set[tuple[int, int]]] = {}
        for y, row in enumerate(batch.grid):
            for x, cell in enumerate(row):
                for weighted in cell:
                    homes.setdefault(weighted.sample.key.group, set()).add((y, x))
        assert len(homes) == 8 and all(len(home) == 1 for home in homes.values())
    # One prompt of 4 tokens and 8 responses of 30: a second rank computes the prompt again and halves the time.
    left, right = pack([make_sample(i, 4, 30) for i in range(8)], num_ranks=2, budget=1000).grid[0]
    assert len(left) == len(right) == 4
    # A prompt of 1,000 tokens and 2 responses of 5: nothing is won by computing it on two ranks.
    long = [make_sample(i, 1000, 5) for i in range(2)]
    assert sorted(len(cell) for cell in pack(long, num_ranks=2, budget=2000).grid[0]) == [0, 2]


def test_a_group_beyond_the_budget_is_cut_into_even_parts() -> None:
    batch = pack([make_sample(i, 10, 30) for i in range(8)], budget=150)
    assert sorted(len(row[0]) for row in batch.grid) == [4, 4]


def test_ranks_compute_the_same_within_a_tenth() -> None:
    rng = random.Random(1)
    samples = [make_sample(i, rng.randint(5, 40), rng.randint(1, 40), i // 8) for i in range(200)]
    batch = pack(samples, num_ranks=4, budget=512)
    loads = [sum(computed_tokens(cell) for cell in batch.column(rank)) for rank in range(4)]
    assert max(loads) - min(loads) <= 0.1 * max(loads)


def test_padded_ranks_are_balanced_within_one_longest_sample() -> None:
    rng = random.Random(1)
    samples = [make_sample(i, 10, rng.randint(1, 40)) for i in range(200)]
    batch = pack(samples, num_ranks=4, budget=256, packing="padded")
    loads = [sum(padded_tokens(cell) for cell in batch.column(rank)) for rank in range(4)]
    assert max(loads) - min(loads) <= 0.1 * max(loads)
    padding = sum(loads) / sum(len(s.token_ids) for s in samples)
    assert padding < 1.15


def test_the_grid_does_not_depend_on_the_order_in_which_samples_arrive() -> None:
    samples = [make_sample(i, 3, 1 + i % 5) for i in range(20)]
    assert pack(samples, 2) == pack(list(reversed(samples)), 2)


def test_more_ranks_than_samples_leaves_cells_empty() -> None:
    assert sorted(len(cell) for cell in pack([make_sample(0, 2, 3)], num_ranks=3).grid[0]) == [0, 0, 1]


def test_bad_input_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        pack([])
    with pytest.raises(ValueError, match="aggregation must be"):
        pack([make_sample(0, 2, 3)], aggregation="mean")
    with pytest.raises(ValueError, match="max_response_tokens"):
        build_batch([make_sample(0, 2, 3)], num_ranks=1, microbatch_tokens=9, aggregation="constant_length")
    with pytest.raises(ValueError, match="one advantage and one sampler logprob"):
        pack([Sample(TrajectoryKey("p", 0, 0), (1, 2, 3), (-1.0,), (0.5, 0.5), (VersionRun(0, 2),))])
