"""The reward model's learner on real DeepSpeed: the same update however it is cut, and back again after a resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from capo_ray.learners import RewardLearner
from capo_ray.learners.microbatch import to_inputs, to_microbatch
from capo_ray.learners.policy import load_policy
from capo_ray.learners.reward import PairWatch
from capo_ray.learners.reward_batch import has_pairs, labelled_trajectories, to_batch, to_labels
from capo_ray.learners.reward_objectives import OBJECTIVES
from capo_ray.learners.scalar import load_scalar_model
from capo_ray.protocols import RunFailed
from capo_ray.types import Group, Judged, Verdict
from tests.learner_group import save
from tests.reward_group import make_groups, make_reward_spec, rewards_of, run_all_objectives, train_on

Rows = list[tuple[float, ...]]


@pytest.fixture(scope="module")
def two_ranks(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that trained each objective together."""
    out = tmp_path_factory.mktemp("ranks")
    run_all_objectives(model, out)
    return out


def with_outcomes(groups: list[Group], reward: int | None) -> list[Group]:
    def judged(member: Judged) -> Judged:
        return dataclasses.replace(member, verdict=Verdict(reward, ""))

    return [dataclasses.replace(g, members=tuple(map(judged, g.members))) for g in groups]


def test_labels_leave_out_invalid_verdicts_and_pairs_need_both_outcomes() -> None:
    groups = make_groups(0)
    assert [label.outcome for label in to_labels(groups)[:3]] == [1, 0, 1]
    assert len(to_labels(groups)) == len(labelled_trajectories(groups)) == 3 * 3
    assert has_pairs(to_labels(groups))
    assert not has_pairs(to_labels(with_outcomes(groups[:1], 1) + with_outcomes(groups[1:], 0)))
    assert not has_pairs(to_labels(with_outcomes(groups, None)))


@pytest.mark.real
@pytest.mark.parametrize("method", sorted(OBJECTIVES))
def test_two_ranks_and_small_cells_make_the_update_of_one(model: Path, two_ranks: Path, method: str) -> None:
    together = json.loads((two_ranks / f"{method}.json").read_text())
    for stage, budget in ((2, 4096), (0, 60)):
        learner = RewardLearner(make_reward_spec(model, method, stage))
        try:
            before = rewards_of(learner, make_groups(9))
            metrics = [train_on(learner, make_groups(seed), budget=budget) for seed in (1, 2)][-1]
            after = rewards_of(learner, make_groups(9))
        finally:
            learner.close()
        assert metrics == pytest.approx(together["metrics"], rel=1e-4), stage
        moved = torch.tensor(sum(after, ())) - torch.tensor(sum(before, ()))
        apart = torch.tensor(sum(after, ())) - torch.tensor(sum(map(tuple, together["rewards"]), ()))
        assert float(moved.norm()) > 0 and float(apart.norm()) < 1e-3 * float(moved.norm()), stage
    assert together["again"] == together["after"], "the update after a load is the update before it"


def test_a_model_stops_once_what_it_says_of_new_pairs_has_fallen() -> None:
    # Means of five: .8, .7, .6, .5 behind .8. A fall of .25 shows with the eighth, and stays although it rises again.
    watch, never = PairWatch(0.25), PairWatch(0.0)
    told = []
    for accuracy in (0.8, 0.8, 0.8, 0.8, 0.8, 0.3, 0.3, 0.3, 1.0, 1.0, 1.0, 1.0, 1.0):
        watch.see(accuracy)
        never.see(accuracy)
        told.append(watch.fell)
    assert told == [False] * 7 + [True] * 6 and not never.fell


@pytest.mark.real
def test_a_stopped_model_stands_and_is_stopped_after_a_resume(model: Path, tmp_path: Path) -> None:
    spec = make_reward_spec(model, "istar", 0, reward_model={"stop_drop": 0.2})
    learner = RewardLearner(spec)
    try:
        for accuracy in (1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0):
            learner._watch.see(accuracy)
        before = rewards_of(learner, make_groups(9))
        assert train_on(learner, make_groups(1)) == {"reward_model/accuracy_alarm": 1.0}
        assert rewards_of(learner, make_groups(9)) == before and learner.version == 1
        save(learner, tmp_path)
        learner._watch.seen.clear()
        assert train_on(learner, make_groups(1))["reward_model/accuracy_alarm"] == 0.0
        learner.load(str(tmp_path))
        assert train_on(learner, make_groups(1)) == {"reward_model/accuracy_alarm": 1.0}
    finally:
        learner.close()


@pytest.mark.real
@pytest.mark.parametrize("method", sorted(OBJECTIVES))
def test_the_model_learns_to_tell_right_from_wrong(model: Path, method: str) -> None:
    learner = RewardLearner(make_reward_spec(model, method, 0, lr=3e-3))
    try:
        reports = [train_on(learner, make_groups(seed, telling=True)) for seed in range(24)]
    finally:
        learner.close()
    assert reports[-1]["reward_model/loss_mean"] < reports[0]["reward_model/loss_mean"]
    assert sum(r["reward_model/accuracy_frac"] for r in reports[-4:]) / 4 > 0.9


@pytest.mark.real
@pytest.mark.parametrize("method", sorted(OBJECTIVES))
def test_a_batch_without_pairs_has_no_accuracy_and_moves_only_what_needs_none(model: Path, method: str) -> None:
    learner = RewardLearner(make_reward_spec(model, method, 0))
    try:
        before = rewards_of(learner, make_groups(9))
        metrics = train_on(learner, with_outcomes(make_groups(1), 0))
        after = rewards_of(learner, make_groups(9))
    finally:
        learner.close()
    assert learner.version == 1 and "reward_model/accuracy_frac" not in metrics
    assert (before == after) == OBJECTIVES[method].pairs_only == ("reward_model/loss_mean" not in metrics)


@pytest.mark.real
def test_istar_may_compare_responses_by_the_mean_over_their_steps(model: Path) -> None:
    left: list[tuple[dict[str, float], list[tuple[float, ...]]]] = []
    # A mean over two steps with twice the beta is the sum with beta: the same scores, so the same update.
    for settings, num_steps in (({"beta": 0.05}, 1), ({"beta": 0.1, "score": "step_mean"}, 2)):
        learner = RewardLearner(make_reward_spec(model, "istar", 0, reward_model=settings))
        try:
            metrics = [train_on(learner, make_groups(seed, num_steps=num_steps)) for seed in (1, 2)][-1]
            left.append((metrics, rewards_of(learner, make_groups(9))))
        finally:
            learner.close()
    (summed, rewards), (averaged, doubled) = left
    assert averaged == pytest.approx(summed, rel=1e-4)
    assert sum(doubled, ()) == pytest.approx([2 * x for x in sum(rewards, ())], rel=1e-3, abs=1e-6)


@pytest.mark.real
def test_qrm_may_read_log_phi_off_a_language_models_own_head(model: Path) -> None:
    spec = make_reward_spec(model, "qrm", 0)
    spec = dataclasses.replace(spec, reward_model=spec.reward_model.model_copy(update={"head": "language_model"}))
    learner, policy = RewardLearner(spec), load_policy(str(model), "float32")
    try:
        rewards = rewards_of(learner, make_groups(9))
        column = to_batch(labelled_trajectories(make_groups(9)), num_ranks=1, microbatch_tokens=4096).column(0)
        told = [policy(to_microbatch(cell, torch.device("cpu")).inputs, spec.temperature)[0] for cell in column]
        reports = [train_on(learner, make_groups(seed, telling=True)) for seed in range(24)]
    finally:
        learner.close()
    assert sum(rewards, ()) == pytest.approx(torch.cat(told).tolist(), abs=1e-5)
    assert sum(r["reward_model/accuracy_frac"] for r in reports[-4:]) / 4 > 0.9


@pytest.mark.parametrize("at_token", [True, False])
def test_the_head_of_a_token_classifier_is_taken_with_it(model: Path, tmp_path: Path, at_token: bool) -> None:
    from transformers import AutoModelForTokenClassification

    path = str(tmp_path / "scorer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scorer = AutoModelForTokenClassification.from_pretrained(str(model), num_labels=1).eval()
        scorer.score.bias.data.fill_(0.25)
    scorer.save_pretrained(path)
    inputs = to_inputs([[1, 5, 7, 9]], [2], torch.device("cpu"))
    values = load_scalar_model(path, "float32", at_token=at_token, seed=3)(inputs, 1.0)[0]
    expected = scorer(input_ids=torch.tensor([[1, 5, 7, 9]])).logits[0, :, 0]
    assert values.tolist() == pytest.approx((expected[2:4] if at_token else expected[1:3]).tolist(), abs=1e-5)
    AutoModelForTokenClassification.from_pretrained(str(model), num_labels=2).save_pretrained(path)
    with pytest.raises(RunFailed, match=r"one label.*out_features=2"):
        load_scalar_model(path, "float32", at_token=at_token, seed=3)


@pytest.mark.real
def test_a_checkpoint_of_another_method_is_refused(model: Path, tmp_path: Path) -> None:
    learner = RewardLearner(make_reward_spec(model, "qrm", 0))
    try:
        save(learner, tmp_path)
    finally:
        learner.close()
    other = RewardLearner(make_reward_spec(model, "etpo", 0))
    try:
        with pytest.raises(RunFailed, match=r"saved with credit\.method=qrm \(got etpo\)"):
            other.load(str(tmp_path))
    finally:
        other.close()


@pytest.mark.real
def test_log_ratios_are_zero_before_the_first_update_and_scaled_by_beta(model: Path) -> None:
    groups = make_groups(3)
    learner = RewardLearner(make_reward_spec(model, "prime", 0))
    try:
        assert max(abs(x) for row in rewards_of(learner, groups) for x in row) == 0.0
    finally:
        learner.close()
    learner = RewardLearner(make_reward_spec(model, "istar", 0))
    try:
        rows = rewards_of(learner, groups)
        cell = [
            w
            for cells in to_batch(labelled_trajectories(groups), num_ranks=1, microbatch_tokens=4096).grid
            for w in cells[0]
        ]
        from capo_ray.learners.microbatch import to_microbatch

        tokens = to_microbatch(cell, torch.device("cpu"))
        logprobs = learner._backend.forward(tokens.inputs, 0.9)[0].detach()
        expected = (0.05 * (logprobs - tokens.sampler_logprobs)).tolist()
    finally:
        learner.close()
    assert [x for row in rows for x in row] == pytest.approx(expected, abs=1e-6)
