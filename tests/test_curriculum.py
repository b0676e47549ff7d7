"""The curriculum: what comes again and when, and that a restored one goes on with the same problem."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.checkpoint import write_state
from capo_ray.config.curriculum import CurriculumConfig
from capo_ray.config.sections import DataConfig
from capo_ray.flow.state import RunState, read_checkpoint
from capo_ray.problems import Curriculum, build_problems, true_wrong_steps
from capo_ray.problems.streams import ChainSource, RowSource
from capo_ray.runs.layout import STATE_FILE
from capo_ray.types import Problem
from tests.examples import examples


def chains(**keys: object) -> Curriculum:
    config = CurriculumConfig.model_validate({"kind": "pass_rate", **keys})
    return Curriculum(ChainSource(3, seed=1), config, seed=7)


def meet(source: Curriculum, rates: list[float]) -> list[Problem]:
    """Fresh problems whose first groups of 100 fared at the given rates."""
    problems = [source._source.next_problem() for _ in rates]
    for problem, rate in zip(problems, rates, strict=True):
        source.observe(problem, [1] * round(100 * rate) + [0] * (100 - round(100 * rate)))
    return problems


def draws(source: Curriculum, count: int, progress: float = 0.0) -> Counter[str]:
    """How often each problem was drawn, every repeated one returned unseen."""
    drawn: Counter[str] = Counter()
    for _ in range(count):
        problem = source.next_problem(progress)
        drawn[problem.id] += 1
        source.observe(problem, []) if problem.id in source._met else None
    return drawn


def test_problems_in_the_band_come_again_hard_ones_more_often() -> None:
    source = chains(fresh_frac=0.01)
    problems = meet(source, [0.0, 0.2, 0.8, 1.0, 0.05, 0.95])
    drawn = draws(source, 1000)
    assert [drawn[p.id] > 0 for p in problems] == [False, True, True, False, False, False]
    assert drawn[problems[1].id] / drawn[problems[2].id] == pytest.approx(0.8 / 0.2, rel=0.25)


def test_the_late_band_takes_over_and_treats_its_problems_alike() -> None:
    source = chains(fresh_frac=0.01, late_from=0.5)
    problems = meet(source, [0.2, 0.4, 0.7, 0.85])
    assert draws(source, 300, progress=0.49)[problems[0].id] > 0
    drawn = draws(source, 1000, progress=0.5)
    assert [drawn[p.id] > 0 for p in problems] == [False, True, True, False]
    assert drawn[problems[1].id] / drawn[problems[2].id] == pytest.approx(1.0, rel=0.25)


def test_with_an_empty_band_every_problem_is_fresh() -> None:
    source = chains(fresh_frac=0.01)
    meet(source, [0.0, 1.0])
    plain = ChainSource(3, seed=1)
    expected = [plain.next_problem() for _ in range(22)][2:]
    assert [source.next_problem() for _ in range(20)] == expected


def test_a_repeated_problem_is_not_drawn_again_before_its_answers_were_seen() -> None:
    source = chains(fresh_frac=0.01)
    (problem,) = meet(source, [0.5])
    assert source.next_problem() == problem
    assert all(source.next_problem() != problem for _ in range(50))
    source.observe(problem, [])  # all verdicts invalid: nothing is known that was not before
    assert source.next_problem() == problem


def test_pass_rates_run_and_the_oldest_are_forgotten() -> None:
    source = chains(newest_weight=0.25, memory=2)
    first, second = meet(source, [0.4, 0.6])
    source.observe(first, [1, 1])  # 0.4 + (1 - 0.4) / 4
    assert source._met[first.id].rate == pytest.approx(0.55)
    (third,) = meet(source, [0.0])
    assert list(source._met) == [first.id, third.id], "second was seen longest ago"
    assert source.figures()["curriculum/pass_rate_mean"] == pytest.approx(0.275)
    assert second.id not in source._met


@settings(max_examples=examples(30))
@given(st.integers(0, 10_000), st.integers(0, 40), st.booleans())
def test_a_restored_curriculum_goes_on_with_the_same_problems(seed: int, done: int, endless: bool) -> None:
    config = CurriculumConfig(kind="pass_rate", fresh_frac=0.4, memory=12, late_from=0.5)
    rows = [Problem(f"r{i}", f"{i}+1", str(i + 1), "because") for i in range(9)]

    def build() -> Curriculum:
        return Curriculum(ChainSource(3, seed) if endless else RowSource(rows, seed), config, seed)

    def fare(source: Curriculum, steps: range) -> list[str]:
        names = []
        for i in steps:
            problem = source.next_problem(i / 80)
            names.append(problem.prompt)
            if i % 3:
                rng = random.Random(f"{seed}/{i}")
                source.observe(problem, [rng.randint(0, 1) for _ in range(4)])
        return names

    source = build()
    fare(source, range(done))
    cursor = json.loads(json.dumps(source.state()))
    again = build()
    again.restore(cursor)
    assert fare(again, range(done, 80)) == fare(source, range(done, 80))
    assert again.figures() == source.figures()


def test_of_saved_problems_the_truth_of_steps_is_known_as_before(tmp_path: Path) -> None:
    """Those of a curriculum's memory, and those that were under way at a checkpoint."""
    for kind in ("words", "chains"):
        config = DataConfig.model_validate({"kind": kind, "chain_steps": 3, "curriculum": {"kind": "pass_rate"}})
        source, again = (build_problems(config, seed=1).train for _ in range(2))
        problem = source.next_problem()
        source.observe(problem, [1, 0])
        payload = RunState().to_payload([(problem, 0)], source.state(), 0.0)
        write_state(tmp_path / STATE_FILE, payload)
        state, cursor = read_checkpoint(tmp_path)
        again.restore(cursor)
        assert isinstance(again, Curriculum)
        steps = (problem.solution or "").split("\n\n" if kind == "chains" else "\n")
        assert true_wrong_steps(problem, steps) == set()
        for wrong in ([], [0], [len(steps) - 1]):
            said = [text.replace("=", "= 1") if i in wrong else text for i, text in enumerate(steps)]
            said = [text.replace("{", "{1") if i in wrong else text for i, text in enumerate(said)]
            for back in (state.outstanding[0][0], again._met[problem.id].problem):
                assert true_wrong_steps(back, said) == true_wrong_steps(problem, said), (kind, wrong)
        assert again.state() == source.state()


def test_cursors_fit_with_and_without_a_curriculum() -> None:
    plain = build_problems(DataConfig(chain_steps=3), seed=1).train
    for _ in range(3):
        plain.next_problem()
    source = chains(fresh_frac=1.0)
    source.restore(plain.state())
    assert source.next_problem() == plain.next_problem()
    plain.restore(source.state())
    assert source.next_problem() == plain.next_problem()
    assert plain.figures() == {}


def test_data_ask_for_the_curriculum_by_one_key() -> None:
    config = DataConfig.model_validate({"chain_steps": 3, "curriculum": {"kind": "pass_rate"}})
    assert isinstance(build_problems(config, seed=1).train, Curriculum)
    with pytest.raises(ValueError, match=r"curriculum.low must be < data.curriculum.high"):
        CurriculumConfig(low=0.9, high=0.9)
