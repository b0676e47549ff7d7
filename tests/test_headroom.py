"""The tables of a world with headroom: arms at their best setting, shares of what GRPO spends, lengths side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def curve_of(arm: str, seed: int, greedy: Sequence[float], gflop: float) -> dict[str, Any]:
    """A run of 40 updates with these greedy accuracies at 0, 20 and 40, and this work an update."""
    points = [
        {"update": 20 * i, "greedy": y, "accuracy": y, "clean": y, "cpu_s": 2.0 * i, "gflop_sampling": 20 * i * gflop}
        for i, y in enumerate(greedy)
    ]
    for point in (points[0], points[-1]):
        point["pass_at"] = {"1": point["greedy"], "4": 0.9}
    shared = {"num_updates": 40, "groups": 1, "group_size": 1, "num_epochs": 1, "eval_problems": 100, "overrides": []}
    settings = shared | {"arm": f"credit=x learner.lr={arm[-4:]}"}
    return {"operations": 4, "arm": arm, "seed": seed, "curve": points, "settings": settings, "figures": [{}]}


def test_an_arm_is_set_against_the_end_of_grpo_at_its_best_rate_by_pairs_of_seeds(tmp_path: Path) -> None:
    from plain_torch import headroom, tuning

    rows = [curve_of("grpo_1e-4", 0, (0.2, 0.2, 0.3), 1.0), curve_of("other_9e-9", 1, (0.2, 0.3, 0.3), 1.0)]
    rows.append(curve_of("step_1e-4", 0, (0.2, 0.9, 0.9), 1.0))  # the end is better, but one seed is not two
    for seed in range(3):
        rows.append(curve_of("grpo_2e-4", seed, (0.2, 0.3, 0.4), 1.0))
        rows.append(curve_of("step_2e-4", seed, (0.2, 0.6, 0.5), 2.0))
    tried = tuning.by_setting(headroom.comparable(rows, 4))
    arms = tuning.at_best(tried)
    assert {arm: len(runs) for arm, runs in arms.items()} == {"step": 3, "grpo": 3, "other": 1}
    shares = {line.split("|")[1].strip(): line for line in headroom.shares_table(arms).splitlines()}
    # 0.4 is half way from 0.2 to 0.6, after 10 of the 40 updates, at twice the work of each.
    assert (
        "| 3 | 0.40 | 0.25 [0.25, 0.25] | 0.50 [0.50, 0.50] |" in shares["`step`"] and "| 3 of 3 |" in shares["`step`"]
    )
    assert "| 1 | 0.40 | not reached | not reached |" in shares["`other`"] and "| 0 of 1 |" in shares["`other`"]
    # Three equal differences of .1: Student's interval is that point.
    assert shares["`step`"].endswith("| +0.10 [+0.10, +0.10] |")
    other_way = {line.split("|")[1].strip(): line for line in headroom.shares_table(arms, "step").splitlines()}
    assert "`step`'s end" in other_way["arm"] and other_way["`grpo`"].endswith("| -0.10 [-0.10, -0.10] |")
    assert "| 3 | 0.50 | not reached | not reached |" in other_way["`grpo`"]
    ends = {line.split("|")[1].strip(): line for line in headroom.ends_table(arms, tried).splitlines()}
    # Two comparisons: 2.241 standard errors. All seeds answer the same 100 problems: sqrt((0.25 + 0.24)/100) = 0.0700.
    assert "| 2e-4 (1e-4: 0.90 of 1) | 3 | 0.20 | 0.60 | 0.50 | +0.10 [-0.06, +0.26] |" in ends["`step`"]
    assert "| pass@1, 4 after |" in ends["arm"] and "| 0.50 0.90 |" in ends["`step`"]
    headroom.draw(arms, tmp_path / "arms.png")
    assert (tmp_path / "arms.png").read_bytes().startswith(b"\x89PNG")


def test_a_rate_with_fewer_seeds_stands_for_an_arm_where_it_ends_better_on_the_seeds_of_both() -> None:
    from plain_torch import tuning

    slow = [curve_of("arm_1e-4", seed, (0.2, 0.3, 0.6), 1.0) for seed in (0, 1)]
    fast = [curve_of("arm_2e-4", seed, (0.2, 0.3, y), 1.0) for seed, y in enumerate((0.7, 0.2, 0.99))]
    assert tuning.best_of([fast, slow]) == slow  # .6 against .45, not .63: the third seed may be an easy one


def test_what_an_arm_was_tried_at_stands_on_its_first_seed_with_the_kl_term_apart() -> None:
    from plain_torch import tuning

    rows = [curve_of(f"arm_{rate}", 0, (0.2, 0.3, y), 1.0) for rate, y in (("5e-5", 0.5), ("1e-4", 0.6), ("2e-4", 0.1))]
    rows += [curve_of("arm_1e-4", 1, (0.2, 0.3, 0.9), 1.0), curve_of("once_1e-4", 0, (0.2, 0.3, 0.8), 1.0)]
    rows.append(curve_of("arm_kl_1e-4", 0, (0.2, 0.3, 0.7), 1.0))
    rows[-1]["settings"]["arm"] += " loss.kl_coef=0.01"
    tried = tuning.by_setting(rows)
    assert {arm: list(settings) for arm, settings in tried.items()} == {
        "arm": ["5e-5", "1e-4", "2e-4", "1e-4, KL 0.01"],
        "once": ["1e-4"],
    }
    assert len(tuning.at_best(tried)["arm"]) == 2  # of two seeds, though one seed ended as high with the KL term
    assert tuning.tuning_table(tried).splitlines()[::2] == [
        "| arm | 5e-5 | 1e-4 | 2e-4 | with a KL term | best |",
        "| `arm` | 0.50 | 0.60 | 0.10 | **0.70** (1e-4, KL 0.01) | 1e-4, KL 0.01 |",
    ]
    assert tuning.tuning_table({"once": tried["once"]}) == ""


def test_an_accuracy_stands_under_its_update_where_an_arm_was_evaluated_more_often() -> None:
    from plain_torch import headroom, tuning

    rows = [curve_of("grpo_1e-4", 0, (0.2, 0.3, 0.4), 1.0), curve_of("step_1e-4", 0, (0.2, 0.5, 0.6), 1.0)]
    rows[1]["curve"].insert(1, {**rows[1]["curve"][1], "update": 10, "greedy": 0.1})
    tried = tuning.by_setting(rows)
    head, _, step, grpo = headroom.ends_table(tuning.at_best(tried), tried).splitlines()
    assert "| greedy: 0 | 10 | 20 | 40 |" in head
    assert "| 0.20 | 0.10 | 0.50 | 0.60 |" in step and "| 0.20 | - | 0.30 | 0.40 |" in grpo


def test_the_quality_of_a_critic_is_that_of_the_vote_and_not_of_its_single_votes() -> None:
    from plain_torch import headroom, tuning

    rows = [curve_of("grpo_1e-4", 0, (0.2, 0.3, 0.4), 1.0), curve_of("votes_1e-4", 0, (0.2, 0.3, 0.5), 1.0)]
    late = {"critic/precision": 0.87, "critic/recall": 0.98, "vote/precision": 0.93, "vote/recall": 0.99}
    rows[1]["figures"] = [{}, {}, late]
    tried = tuning.by_setting(rows)
    assert headroom.ends_table(tuning.at_best(tried), tried).splitlines()[2].endswith("| 0.93, 0.99 |")
    del late["vote/precision"]  # a method that counts verdicts: no vote flags a step
    late["vote/recall"] = 0.0
    assert headroom.ends_table(tuning.at_best(tried), tried).splitlines()[2].endswith("| 0.87, 0.98 |")


def test_lengths_stand_side_by_side_with_an_interval_over_seeds(tmp_path: Path) -> None:
    from plain_torch import lengths

    rows = []
    for operations in (4, 8):
        for seed, (low, high) in enumerate([(0.3, 0.5), (0.32, 0.82), (0.28, 0.68)]):
            rows.append({**curve_of("grpo_1e-4", seed, (0.2, 0.28, low), 1.0), "operations": operations})
            rows.append({**curve_of("capo_w1_2e-4", seed, (0.2, 0.4, high), 1.0), "operations": operations})
    (tmp_path / "images").mkdir()
    (tmp_path / "results.md").write_text("before\n\n*Ends by chain length, easy*\n\n| old |\n\nafter\n")
    for other in ("results_arms.md", "history.md"):
        (tmp_path / other).write_text("nothing\n")
    rows.append({**curve_of("few_1e-4", 1, (0.2, 0.3, 0.22), 1.0), "operations": 8})
    table, every = lengths.write(rows, tmp_path, "easy").values()
    # Gaps .2, .5, .4: mean .3667, standard error .1528 / sqrt(3) = .0882, times Student's 4.303 for two degrees: .3795.
    assert (
        "| 8 | 0.20 | 100% | 0.50 0.82 0.68; **0.67** | - | 0.30 0.32 0.28; **0.30** | +0.37 [-0.01, +0.75] | - |"
        in table
    )
    # GRPO's end, .3, is half way from .2 to .4, so after 10 updates, which GRPO reaches after 40 itself: .25. Without a
    # seed it is .3, .29 or .31, after 10, 9 or 11. Pseudo-values 3 ln .25 - 2 ln (.25, .225, .275) = -1.3863, -1.1756,
    # -1.5769; their standard error .1159 times 4.303 is .4987: .25 times exp(-.4987) and exp(.4987).
    assert table.splitlines()[-1].endswith("| - | 0.25 [0.15, 0.41] | 0.25 [0.15, 0.41] |")
    page = (tmp_path / "results.md").read_text()
    assert page.startswith(f"before\n\n*Ends by chain length, easy*\n\n{table}\n\nafter") and "old" not in page
    assert (tmp_path / "images" / "headroom-lengths-easy.png").read_bytes().startswith(b"\x89PNG")
    assert lengths.write(rows[:6], tmp_path) == {}
    # Means of seeds: (.5 + .82 + .68) / 3, (.3 + .32 + .28) / 3; the arm with seed 1 alone is .1 below GRPO's .32.
    assert every.splitlines()[0] == "| arm | 4 operations | 8 operations |"
    assert every.splitlines()[2:] == [
        "| `capo_w1` | 0.67 (3) +0.37 | 0.67 (3) +0.37 |",
        "| `grpo` | 0.30 (3) | 0.30 (3) |",
        "| `few` | - | 0.22 (1) -0.10 |",
    ]
    alone = lengths.write(rows[:6], tmp_path, "easy")["Ends by chain length, easy"]  # a page asks for it
    assert alone.splitlines()[2:] == table.splitlines()[2:3] and alone in (tmp_path / "results.md").read_text()
    rows[0]["curve"][0] |= {"accuracy": 0.5, "clean": 0.1}
    rows[2]["curve"][0] |= {"accuracy": 0.3, "clean": 0.1}
    assert lengths.sound_frac([rows[0], rows[2]]) == pytest.approx(0.2 / 0.8)


def test_the_interval_of_a_share_is_a_jackknifes_over_seeds() -> None:
    from plain_torch import headroom, intervals

    grpo = [curve_of("grpo_2e-4", seed, (0.2, 0.3, 0.4), 1.0) for seed in range(3)]
    arm = [curve_of("step_2e-4", seed, (0.2, y, 0.9), 1.0) for seed, y in enumerate((0.6, 0.7, 0.8))]
    # The mean comes to .4 after .2/.5 of 20 updates, .2 of GRPO's 40; without one seed after .2/.55, .2/.5 and .2/.45.
    # Pseudo-values of the logarithm 3 ln .2 - 2 ln (.1818, .2, .2222) = -1.4188, -1.6094, -1.8202; their standard error
    # .2007 / sqrt(3) = .1159, times Student's 4.303: .4986. So .2 times exp(-.4986) and exp(.4986).
    assert headroom.share(arm, grpo, headroom.SPENT["updates"]) == "0.20 [0.12, 0.33]"
    assert intervals.of_mean([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)


def test_no_share_is_given_where_grpo_gains_nothing_or_a_single_seed_decides() -> None:
    from plain_torch import headroom

    updates = headroom.SPENT["updates"]
    grpo = [curve_of("grpo_2e-4", seed, (0.2, 0.3, 0.4), 1.0) for seed in range(3)]
    arm = [curve_of("step_2e-4", seed, (0.2, 0.2, 0.2 if seed else 0.9), 1.0) for seed in range(3)]
    assert headroom.share(arm, grpo, updates) == "0.93 (hangs on a seed)"  # without it the others never come there
    assert "| 1 of 3 |" in headroom.shares_table({"step": arm, "grpo": grpo}).splitlines()[2]
    above = [curve_of("step_2e-4", 0, (0.3, 0.6, 0.9), 1.0)]
    for end in (
        0.2,
        0.35,
    ):  # below its beginning; above it by less than 1.96 of sqrt((.3 * .7 + .35 * .65) / 100) = .066
        assert headroom.share(above, [curve_of("grpo_2e-4", 0, (0.3, 0.3, end), 1.0)], updates) == "no clear gain"
    assert headroom.share(above, [curve_of("grpo_2e-4", 0, (0.3, 0.3, 0.5), 1.0)], updates) == "0.33"
    assert headroom.spearman([1, 2, 2, 3], [10, 30, 20, 40]) == pytest.approx(0.9486833)
