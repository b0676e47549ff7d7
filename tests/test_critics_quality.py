"""Critic quality: figures by hand, scripted critics that hit their marks, canaries that raise the alarm."""

import asyncio
import math
from pathlib import Path

import pytest

from benchmarks.scripted import ScriptedJudge, ScriptedSource
from capo_ray.config.sections import CriticConfig
from capo_ray.critics import CanaryWatch, judge_canaries, load_cases
from capo_ray.critics.canary import chain_cases
from capo_ray.critics.quality import FirstErrors, first_errors, fleiss_kappa, step_quality, vote_agreement
from capo_ray.prompts import load_rubric
from capo_ray.protocols import JudgeRequest


def sets(*groups: str) -> list[frozenset[int]]:
    return [frozenset(map(int, group)) for group in groups]


def test_step_quality_pools_the_steps_of_all_responses() -> None:
    quality = step_quality(sets("01", "", "2"), sets("1", "0", "2"), [3, 2, 3])
    assert (quality.hits, quality.false_alarms, quality.misses, quality.passes) == (2, 1, 1, 4)
    assert quality.precision == pytest.approx(2 / 3)
    assert quality.recall == pytest.approx(2 / 3)
    assert quality.accuracy == pytest.approx(6 / 8)


def test_what_is_undefined_is_nan_and_not_zero() -> None:
    assert math.isnan(step_quality(sets(""), sets("1"), [2]).precision)
    assert math.isnan(vote_agreement(sets("1"), 3))
    assert math.isnan(fleiss_kappa([(sets("", ""), 3)]))


def test_first_errors_are_processbenchs() -> None:
    first = first_errors(sets("12", "2", "", "0"), sets("13", "1", "", ""))
    assert (first.on_bad, first.on_good, first.f1) == (0.5, 0.5, 0.5)
    # As in its evaluate.py, a prediction that could not be read is no match: neither an error found nor a pass.
    first = first_errors([*sets("1", "", ""), None, None], sets("1", "2", "", "0", ""))
    assert first == FirstErrors(found=1, num_bad=3, passed=1, num_good=2)
    assert first.f1 == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))


def test_the_interval_of_processbenchs_f1_narrows_with_the_responses_and_has_a_width_at_the_ends() -> None:
    def width(first: FirstErrors) -> float:
        low, high = first.f1_ci95
        assert 0 <= low <= first.f1 <= high <= 1 or first.f1 in (0.0, 1.0)
        return high - low

    assert width(FirstErrors(200, 400, 200, 400)) < width(FirstErrors(20, 40, 20, 40)) < 0.35
    # Of ten right out of ten, Jeffreys' interval begins at .783 (R: qbeta(.025, 10.5, .5)), so F1's above that.
    low, _ = FirstErrors(10, 10, 10, 10).f1_ci95
    assert 0.78 < low < 0.95
    assert math.isnan(FirstErrors(0, 0, 1, 1).f1) and math.isnan(FirstErrors(0, 0, 1, 1).f1_ci95[0])
    assert FirstErrors(0, 3, 0, 3).f1 == 0.0


def test_fleiss_kappa_by_hand() -> None:
    # Two votes on four steps, agreeing on three: P = 3/4, flagged 3 of 8: chance = 9/64 + 25/64 = 34/64.
    assert fleiss_kappa([(sets("01", "0"), 4)]) == pytest.approx((3 / 4 - 34 / 64) / (1 - 34 / 64))
    assert fleiss_kappa([(sets("01", "01"), 4)]) == pytest.approx(1.0)
    assert vote_agreement(sets("01", "0"), 4) == pytest.approx(3 / 4)


def test_a_scripted_critic_has_the_precision_and_recall_it_was_given() -> None:
    cases = chain_cases(150, 8, seed=1)
    truth = {case.problem.prompt: case.wrong for case in cases}
    share = sum(len(c.wrong) for c in cases) / sum(len(c.steps) for c in cases)
    source = ScriptedSource(lambda p, s: truth[p.prompt], precision=0.8, recall=0.7, wrong_frac=share)
    judge = ScriptedJudge(source, CriticConfig(early_stop=False))
    flagged, wrong, counts = [], [], []
    for case in cases:
        (votes,) = asyncio.run(judge.critique(case.problem, [JudgeRequest(case.steps)], 4))
        for vote in votes:
            assert vote.flagged is not None
            flagged.append(vote.flagged)
            wrong.append(case.wrong)
            counts.append(len(case.steps))
    quality = step_quality(flagged, wrong, counts)
    assert quality.precision == pytest.approx(0.8, abs=0.05)
    assert quality.recall == pytest.approx(0.7, abs=0.05)


def test_canaries_alarm_when_the_critic_goes_blind() -> None:
    cases = load_cases("", "compact")
    truth = {case.problem.prompt: case.wrong for case in cases}
    config = CriticConfig()
    seeing = ScriptedJudge(ScriptedSource(lambda p, s: truth[p.prompt]), config)
    blind = ScriptedJudge(ScriptedSource(lambda p, s: ()), config)
    for judge, alarm in ((seeing, 0.0), (blind, 1.0)):
        watch = CanaryWatch(judge, judge, cases, every=2, least=0.5, num_votes=2, vote="majority")
        asyncio.run(watch.critique(cases[0].problem, [JudgeRequest(cases[0].steps)], 2))
        assert watch.stats()["critic/canary_alarm"] == alarm
    report = asyncio.run(judge_canaries(seeing, cases, 2, "majority"))
    assert (report.recall, report.precision, report.invalid_frac) == (1.0, 1.0, 0.0)


def test_shipped_canaries_hold_their_own_truth() -> None:
    from capo_ray.critics import calculate, parse_critique

    for case in load_cases("", "compact"):
        flagged, _, _ = parse_critique(calculate(case.steps, modulus=10), len(case.steps))
        assert flagged == case.wrong
    cases = load_cases("", "paper")
    assert len(cases) >= 12
    for case in cases:
        flagged, _, _ = parse_critique(calculate(case.steps), len(case.steps))
        assert flagged is None or flagged <= case.wrong  # what the calculator finds is indeed wrong


def test_a_canary_file_with_a_wrong_index_is_refused_by_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "canaries.jsonl"
    path.write_text('{"question": "q", "steps": ["a"], "wrong_steps": [1]}\n')
    with pytest.raises(ValueError, match="canary 1"):
        load_cases(str(path), "paper")


def test_files_of_a_critic_may_lie_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cases.jsonl").write_text('{"question": "1+1?", "steps": ["1+1=3"], "wrong_steps": [0]}\n')
    (tmp_path / "rubric.txt").write_text("{question} {steps}")
    assert [case.wrong for case in load_cases("~/cases.jsonl", "paper")] == [frozenset({0})]
    assert load_rubric("~/rubric.txt").text == "{question} {steps}"
