"""The entropy of a distribution from its largest logprobs: exact where they are all, bounded where they are not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.engines.requests import TOP_LOGPROBS, entropy, entropy_logprobs
from tests.examples import examples


def test_entropies_by_hand() -> None:
    assert entropy([math.log(0.5)] * 2) == pytest.approx(math.log(2))
    assert entropy([0.0]) == 0.0
    assert entropy([math.log(0.75), math.log(0.25), -math.inf]) == pytest.approx(0.5623351)
    assert entropy([math.log(0.5)]) == pytest.approx(math.log(2)), "the other half as one lump"


@settings(max_examples=examples(100))
@given(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=40), st.integers(1, 39))
def test_a_rest_costs_at_most_its_mass_times_the_log_of_its_size(masses: list[float], listed: int) -> None:
    listed = min(listed, len(masses) - 1)
    probs = sorted((m / math.fsum(masses) for m in masses), reverse=True)
    exact = -math.fsum(p * math.log(p) for p in probs)
    rest = math.fsum(probs[listed:])
    found = entropy([math.log(p) for p in probs[:listed]])
    assert exact - rest * math.log(len(probs) - listed) - 1e-9 <= found <= exact + 1e-9


def test_small_vocabularies_are_read_whole_and_large_ones_in_part() -> None:
    assert entropy_logprobs(101) == 101
    assert entropy_logprobs(151_936) == TOP_LOGPROBS
