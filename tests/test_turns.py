"""Responses of several turns: what the policy read between them counts nowhere, and one turn is what it always was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo_ray.config import CREDIT_METHODS
from capo_ray.config.steps import NewlineSteps, TurnSteps
from capo_ray.credit import assign_credit, audit
from capo_ray.evidence.offline import credit_of_line
from capo_ray.flow.ages import sort_by_age
from capo_ray.flow.group import CreditedGroup, to_samples
from capo_ray.learners import Learner
from capo_ray.learners.microbatch import to_microbatch
from capo_ray.metrics.transcripts import group_line
from capo_ray.packing import build_batch
from capo_ray.steps import split_steps, split_text
from capo_ray.steps.spans import TextAlone
from capo_ray.types import Completion, Group, Judged, Sample, TrajectoryKey, VersionRun
from tests.credit_groups import Member, group, judged
from tests.examples import examples
from tests.learner_group import VOCAB
from tests.test_credit_outcome import members
from tests.test_learner_numerics import alone, cosine, start_of


def said(text: str, version: int = 0) -> Completion:
    n = len(text)
    return Completion(range(n), (-0.5,) * n, range(1, n + 1), text, (VersionRun(version, n),), "stop")


def with_words(response: Completion, text: str) -> Completion:
    return response.reads(range(100, 100 + len(text)), range(1, len(text) + 1), text)


TWO_TURNS = with_words(said("ab\nc", 3), "xy\n").then(said("de", 4))


def in_turns(member: Judged, words: Sequence[int]) -> Judged:
    """The member with so many read tokens behind each of its steps."""
    response, spans, at = member.trajectory.response, [], 0
    whole = replace(response, token_ids=(), logprobs=(), char_ends=(), text="", versions=())
    for (start, end), count in zip(member.steps, words, strict=True):
        n = end - start
        turn = Completion(range(n), response.logprobs[start:end], range(1, n + 1), "x" * n, (VersionRun(0, n),), "stop")
        whole = with_words(whole.then(turn), "y" * count)
        spans.append((at, len(whole.token_ids)))
        at = len(whole.token_ids)
    return replace(member, trajectory=replace(member.trajectory, response=whole), steps=tuple(spans))


@pytest.mark.slow
@settings(max_examples=examples(150))
@given(
    made=st.lists(members(), min_size=1, max_size=4),
    method=st.sampled_from(sorted(CREDIT_METHODS)),
    progress=st.sampled_from([0.0, 0.3, 1.0]),
    data=st.data(),
)
def test_what_was_read_changes_no_credit_of_any_method(
    made: list[Member], method: str, progress: float, data: st.DataObject
) -> None:
    plain = group(*made)
    # A gamma of 1: whether tokens stand in one turn or in several is then no difference to ETPO either.
    config = CREDIT_METHODS[method](**({"turn_discount": 1.0} if method == "etpo" else {}))
    words = [
        data.draw(st.lists(st.integers(0, 3), min_size=len(m.steps), max_size=len(m.steps))) for m in plain.members
    ]
    turned = replace(plain, members=tuple(map(in_turns, plain.members, words)))
    credit, alike = assign_credit(plain, config, progress), assign_credit(turned, config, progress)
    assert alike == credit and audit(turned, alike) == audit(plain, credit)


def test_a_turn_adds_its_tokens_and_what_was_read_has_no_numbers() -> None:
    assert TWO_TURNS.text == "ab\ncxy\nde" and TWO_TURNS.acted == ((0, 4), (7, 9))
    assert TWO_TURNS.num_sampled == len(TWO_TURNS.logprobs) == 6
    assert TWO_TURNS.char_ends.tolist() == list(range(1, 10))
    assert TWO_TURNS.versions == (VersionRun(3, 4), VersionRun(4, 6))
    assert TWO_TURNS.sampled().tolist() == [True] * 4 + [False] * 3 + [True] * 2
    one = said("ab")
    assert one.turns == ((0, 2),) and one.sampled().all() and one.over_tokens(one.logprobs) is one.logprobs


def test_steps_lie_in_one_turn_and_what_was_read_belongs_to_the_step_before_it() -> None:
    assert split_steps(TWO_TURNS, TurnSteps()) == ((0, 7), (7, 9))
    assert split_steps(TWO_TURNS, NewlineSteps()) == ((0, 3), (3, 7), (7, 9))
    assert split_steps(said("ab\nc"), TurnSteps()) == ((0, 4),)
    with pytest.raises(TextAlone, match=r"steps\.segmenter=turn reads the turns of a response"):
        split_text("ab\ncd", TurnSteps())


def turned_group() -> Group:
    turned = in_turns(judged(Member(1, [2, 3], flags=[[1]])), [2, 0])
    return Group(0, group(Member(1, [1])).problem, (turned, judged(Member(0, [3], flags=[[0]]), 1)))


def test_a_transcript_of_turns_is_credited_again_to_the_same_numbers() -> None:
    made = turned_group()
    credit = assign_credit(made, CREDIT_METHODS["capo"]())
    line = json.loads(json.dumps(group_line(1, made, credit)))
    first, second = line["responses"]
    assert first["acted"] == [[0, 2], [4, 7]] and "acted" not in second
    assert first["credit"]["advantages"][2:4] == [0, 0] and len(first["credit"]["advantages"]) == 7
    again = credit_of_line(json.dumps(line), CREDIT_METHODS["capo"]())["responses"]
    assert [r["advantages"] for r in again] == [r["credit"]["advantages"] for r in (first, second)]


@pytest.mark.parametrize("acted", [[[0, 3], [2, 4]], [[4, 9]], [[2, 2]], 3])
def test_turns_that_are_no_spans_are_refused(acted: object) -> None:
    line = group_line(1, turned_group(), assign_credit(turned_group(), CREDIT_METHODS["grpo"]()))
    line["responses"][0]["acted"] = acted
    with pytest.raises(
        ValueError, match=r"responses\[0\].acted: expected pairs \[start, end\) of the 7 tokens in order"
    ):
        credit_of_line(json.dumps(line), CREDIT_METHODS["grpo"]())


def test_ages_and_the_ledger_count_sampled_tokens() -> None:
    member = replace(judged(Member(1, [9])), steps=((0, 7), (7, 9)))
    member = replace(member, trajectory=replace(member.trajectory, response=TWO_TURNS))
    made = Group(0, group(Member(1, [1])).problem, (member,))
    credited = CreditedGroup(made, assign_credit(made, CREDIT_METHODS["grpo"]()), {}, 0.0)
    aged = sort_by_age([credited], 4, 0)
    assert aged.ages == {1: 4, 0: 2} and aged.masked == (4,) and credited.num_tokens == 6
    (sample,) = to_samples(credited)
    assert sample.acted == ((2, 6), (9, 11)) and len(sample.token_ids) == 11 and sample.num_response_tokens == 6
    (((packed,),),) = build_batch([sample], num_ranks=1, microbatch_tokens=64, aggregation="token_mean").grid
    assert packed.loss_weights == (1 / 6,) * 6
    targets = to_microbatch([packed], torch.device("cpu")).inputs.targets.tolist()
    assert targets == [0, 1, 2, 3, 0, 1]


def test_turns_of_one_sample_move_the_weights_as_samples_of_their_own(model: Path) -> None:
    rng = np.random.default_rng(0)
    ids, spans = rng.integers(3, VOCAB, 20).tolist(), ((4, 9), (12, 15), (15, 19))
    numbers = {name: rng.normal(size=12) for name in ("sampler_logprobs", "advantages")}
    whole = Sample(TrajectoryKey("p", 0, 0), ids, versions=(VersionRun(0, 12),), acted=spans, **numbers)
    apart, at = [], 0
    for k, (start, end) in enumerate(spans):
        rows = {name: row[at : at + end - start] for name, row in numbers.items()}
        apart.append(Sample(TrajectoryKey("p", 0, k), ids[:end], versions=(VersionRun(0, end - start),), **rows))
        at += end - start
    left = []
    for samples in ([whole], apart):
        learner = Learner(alone(model))
        batch = build_batch(samples, num_ranks=1, microbatch_tokens=200, aggregation="token_mean")
        metrics = learner.update(batch.column(0)).metrics
        left.append((metrics, learner.named_tensors()))
        learner.close()
    (metrics, weights), (others, same) = left
    assert metrics["learner/loss_tokens"] == 12 and weights and same
    for name in ("loss/objective_mean", "loss/entropy_nats", "loss/kl_nats", "loss/mismatch_kl_nats"):
        assert metrics[name] == pytest.approx(others[name], rel=1e-4, abs=1e-6)
    assert metrics["learner/grad_norm"] == pytest.approx(others["learner/grad_norm"], rel=1e-4)
    direction, length = cosine(weights, same, start_of(model))  # Adam magnifies rounding where a gradient is near 0
    assert direction > 1 - 1e-6 and length == pytest.approx(1.0, abs=1e-4)
