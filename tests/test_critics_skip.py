"""Groups that need no critic: the advantages are the same whatever the critics would say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.config.credit import CREDIT_METHODS
from capo_ray.credit import assign_credit, critiques_matter
from capo_ray.flow import Parts
from tests.credit_groups import Member, group
from tests.examples import examples
from tests.fakes import FakeEngine, FakeJudge, fake_parts
from tests.test_pipeline import make_config, run

VOTES = ("intersection", "majority", "union", "average", "greedy")
PROGRESS = st.sampled_from([0.0, 0.1, 0.5, 1.0])


def configs() -> st.SearchStrategy[Any]:
    capo = st.builds(
        CREDIT_METHODS["capo"],
        vote=st.sampled_from(VOTES),
        w_process=st.sampled_from([0.0, 1.0, 2.5]),
        w_format=st.sampled_from([0.0, 0.5]),
        normalisation=st.sampled_from(["pooled", "separate", "leave_one_out"]),
        weighting=st.sampled_from(["token", "trajectory"]),
        ramp_frac=st.sampled_from([0.0, 0.5]),
        keep_outcome_sign=st.booleans(),
    )
    pure = st.builds(CREDIT_METHODS["pure"], vote=st.sampled_from(VOTES), w_process=st.sampled_from([0.0, 1.0]))
    return st.one_of(capo, pure, st.builds(CREDIT_METHODS["grpo_genorm"]))


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    """One to three responses of one to three steps, two critiques each; most groups have a single valid one."""
    made = []
    for index in range(draw(st.integers(1, 3))):
        lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        flags = [draw(st.one_of(st.none(), st.sets(st.integers(0, len(lengths) - 1)).map(sorted))) for _ in range(2)]
        overall = draw(st.tuples(*[st.sampled_from([True, False, None])] * 2))
        reward = draw(st.sampled_from([0, 1] if not index else [None, None, 0, 1]))
        made.append(Member(reward, lengths, flags, overall, extracted=draw(st.sampled_from(["1", None]))))
    return made


def bare(made: list[Member]) -> list[Member]:
    return [Member(m.reward, m.lengths, extracted=m.extracted) for m in made]


@pytest.mark.slow
@settings(max_examples=examples(600))
@given(members(), configs(), PROGRESS)
def test_a_skipped_group_has_the_advantages_that_any_critiques_would_give(
    made: list[Member], config: Any, progress: float
) -> None:
    judged = group(*made)
    if critiques_matter(judged.members, config, progress):
        return
    with_critics = assign_credit(judged, config, progress)
    without = assign_credit(group(*bare(made)), config, progress)
    assert with_critics.advantages == without.advantages
    assert with_critics.included == without.included


@pytest.mark.parametrize(
    ("method", "keys", "made", "progress", "matters"),
    [
        ("capo", {}, [Member(1, [2, 2]), Member(0, [3])], 0.0, True),
        ("capo", {"w_process": 0.0}, [Member(1, [2, 2]), Member(0, [3])], 0.0, False),
        ("capo", {"ramp_frac": 0.5}, [Member(1, [2, 2]), Member(0, [3])], 0.0, False),
        ("capo", {"ramp_frac": 0.5}, [Member(1, [2, 2]), Member(0, [3])], 0.1, True),
        ("capo", {"keep_outcome_sign": True}, [Member(0, [2, 2]), Member(0, [3])], 0.0, True),
        ("capo", {}, [Member(1, [2, 2]), Member(None, [3])], 0.0, True),
        ("capo", {}, [Member(1, [4]), Member(None, [3])], 0.0, False),
        ("capo", {"normalisation": "leave_one_out"}, [Member(1, [2, 2]), Member(None, [3])], 0.0, False),
        ("pure", {"w_process": 0.0}, [Member(1, [2, 2]), Member(0, [3])], 0.0, False),
        ("pure", {}, [Member(1, [2, 2]), Member(None, [3])], 0.0, False),
        ("pure", {}, [Member(1, [2, 2]), Member(0, [3])], 0.0, True),
        ("grpo_genorm", {}, [Member(1, [2, 2]), Member(None, [3])], 0.0, False),
        ("grpo_genorm", {}, [Member(1, [2, 2]), Member(0, [3])], 0.0, True),
    ],
)
def test_which_groups_need_no_critic(
    method: str, keys: dict[str, Any], made: list[Member], progress: float, matters: bool
) -> None:
    config = CREDIT_METHODS[method](method=method, **keys)
    assert critiques_matter(group(*made).members, config, progress) is matters


def test_a_method_that_is_not_listed_is_never_skipped() -> None:
    lone = group(Member(1, [4])).members
    assert critiques_matter(lone, SimpleNamespace(method="another"), 0.0)
    assert not critiques_matter([], SimpleNamespace(method="another"), 0.0), "nobody is left to be judged"


def trained(tmp_path: Path, **critic: object) -> tuple[Parts, list[dict[str, float]], int]:
    """The parts, rows and judged groups of a run whose process penalty grows from 0 over its second half."""
    asked = 0

    class Counting(FakeJudge):
        async def critique(self, *arguments: Any) -> Any:
            nonlocal asked
            asked += 1
            return await super().critique(*arguments)

    config = make_config(critic=critic, credit={"method": "capo", "ramp_frac": 1.0}, stream={"max_age": 0})
    parts = fake_parts(tmp_path, config, engine=FakeEngine(), judge=Counting())
    run(parts)
    return parts, [row for _, row in parts.tracker.rows if "critic/skipped_frac" in row], asked  # type: ignore[attr-defined]


def test_the_share_of_skipped_responses_is_a_metric_and_the_run_goes_on(tmp_path: Path) -> None:
    _, rows, asked = trained(tmp_path / "skip", skip="no_gradient")
    _, every, asked_of_all = trained(tmp_path / "none")
    assert 0 < rows[-1]["critic/skipped_frac"] < 0.5 and every[-1]["critic/skipped_frac"] == 0.0
    assert asked < asked_of_all
    assert rows[-1]["critic/outcome_only_frac"] == 0.0, "a group that was not asked about did not fall back"
