"""Rows of runs are the rows of tokens they stand for, sums included; nouns hold read-only arrays, equal by value."""

from __future__ import annotations

import importlib.util
import math
import pickle
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo_ray.arrays import Runs, exact_sum
from capo_ray.types import Completion, Sample, Trajectory, TrajectoryKey, VersionRun

NUMBERS = st.sampled_from([0.0, 0.1, -0.3, 1 / 3, 1e-300, 2.5e17])
ROWS = st.lists(st.tuples(NUMBERS, st.integers(1, 70)), max_size=6).map(
    lambda runs: [x for x, n in runs for _ in range(n)]
)


def response(text: str = "ab") -> Completion:
    count = len(text)
    return Completion(
        tuple(map(ord, text)), (-0.1,) * count, tuple(range(1, count + 1)), text, (VersionRun(0, count),), "stop"
    )


@given(ROWS)
def test_a_row_of_runs_is_the_row_of_its_tokens(row: list[float]) -> None:
    runs = Runs.of(row)
    assert list(runs) == row and len(runs) == len(row) and runs == row and runs == tuple(row)
    assert [runs[t] for t in range(len(row))] == row and runs[1:3] == tuple(row[1:3])
    assert runs.any() == any(row) and list(runs.map(abs)) == [abs(x) for x in row]
    assert pickle.loads(pickle.dumps(runs)) == row
    assert runs.expand(np.float32).tolist() == np.array(row, np.float32).tolist()


@given(ROWS)
def test_the_sum_of_runs_is_that_of_their_tokens_to_the_bit(row: list[float]) -> None:
    assert exact_sum(Runs.of(row).counts().items()) == math.fsum(row)


def test_a_sum_beyond_the_range_of_numbers_raises_as_that_of_its_tokens() -> None:
    with pytest.raises(OverflowError):
        exact_sum(Runs.constant(1.7e308, 2).counts().items())


@given(ROWS, st.data())
def test_two_rows_join_token_by_token(row: list[float], data: st.DataObject) -> None:
    other = data.draw(st.lists(NUMBERS, min_size=len(row), max_size=len(row)))
    assert list(Runs.of(row).with_each(Runs.of(other), add)) == [a + b for a, b in zip(row, other, strict=True)]


def test_tuples_become_read_only_arrays_and_equal_nouns_are_equal() -> None:
    made = Trajectory(TrajectoryKey("p", 0, 0), (1, 2), response())
    assert made.token_ids.tolist() == [1, 2, ord("a"), ord("b")], "one after the other, not added"
    assert made.response.token_ids.dtype == made.response.char_ends.dtype == np.int32
    assert made.response.logprobs.dtype == np.float32
    for array in (made.prompt_ids, made.response.token_ids, made.response.logprobs, made.response.char_ends):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    again = pickle.loads(pickle.dumps(made))
    assert made == again == Trajectory(made.key, made.prompt_ids, response().owned())
    assert made != Trajectory(made.key, (1, 3), response()) and made != Trajectory(made.key, (1, 2), response("abc"))


def test_arrays_travel_as_buffers() -> None:
    count = 4096
    ids = np.arange(count, dtype=np.int32)
    sample = Sample(TrajectoryKey("p", 0, 0), ids, np.zeros(count - 9, np.float32), (0.5,) * (count - 9), ())
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(sample, protocol=5, buffer_callback=buffers.append)
    assert len(head) < 1000 and sum(len(buffer.raw()) for buffer in buffers) < 8.1 * count


def driver_cost() -> Any:
    spec = importlib.util.spec_from_file_location(
        "driver_cost", Path(__file__).parent.parent / "benchmarks" / "driver_cost.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ten_thousand_responses_of_16k_tokens_stay_under_four_gb_with_their_samples_and_batch() -> None:
    held = driver_cost().bytes_per_token(32, 16_384)
    assert held["with_batch_bytes"] * 10_000 * 16_384 < 4e9, held
