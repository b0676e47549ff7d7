"""The tables of a world with headroom: arms at their best rate, shares of what GRPO spends, lengths side by side."""

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
    from plain_torch import headroom

    rows = [curve_of("grpo_1e-4", 0, (0.2, 0.2, 0.3), 1.0), curve_of("other_9e-9", 1, (0.2, 0.3, 0.3), 1.0)]
    rows.append(curve_of("step_1e-4", 0, (0.2, 0.9, 0.9), 1.0))  # the end is better, but one seed is not three
    for seed in range(3):
        rows.append(curve_of("grpo_2e-4", seed, (0.2, 0.3, 0.4), 1.0))
        rows.append(curve_of("step_2e-4", seed, (0.2, 0.6, 0.5), 2.0))
    tried = headroom.by_rate(headroom.comparable(rows, 4))
    arms = headroom.at_best_rate(tried)
    assert {arm: len(runs) for arm, runs in arms.items()} == {"step": 3, "grpo": 3, "other": 1}
    shares = {line.split("|")[1].strip(): line for line in headroom.shares_table(arms).splitlines()}
    # 0.4 is half way from 0.2 to 0.6, after 10 of the 40 updates, at twice the work of each.
    assert "| 3 | 0.40 | 0.25 [0.25, 0.25] | 0.50 [0.50, 0.50] |" in shares["`step`"]
    assert "| 1 | 0.40 | not reached | not reached |" in shares["`other`"]
    ends = {line.split("|")[1].strip(): line for line in headroom.ends_table(arms, tried).splitlines()}
    # Two comparisons: 2.241 standard errors of 0.1 with 300 answers each, sqrt(0.25/300 + 0.24/300) = 0.0404.
    assert "| 2e-4 (1e-4: 0.90) | 3 | 0.20 | 0.60 | 0.50 | +0.10 [+0.01, +0.19] |" in ends["`step`"]
    headroom.draw(arms, tmp_path / "arms.png")
    assert (tmp_path / "arms.png").read_bytes().startswith(b"\x89PNG")


def test_lengths_stand_side_by_side_with_an_interval_over_seeds(tmp_path: Path) -> None:
    from plain_torch import lengths

    rows = []
    for operations in (4, 8):
        for seed, (low, high) in enumerate([(0.3, 0.5), (0.4, 0.9), (0.2, 0.6)]):
            rows.append({**curve_of("grpo_1e-4", seed, (0.2, 0.3, low), 1.0), "operations": operations})
            rows.append({**curve_of("capo_w1_2e-4", seed, (0.2, 0.4, high), 1.0), "operations": operations})
    (tmp_path / "images").mkdir()
    (tmp_path / "results.md").write_text("before\n\n*Ends by chain length, easy*\n\n| old |\n\nafter\n")
    (tmp_path / "history.md").write_text("nothing\n")
    (table,) = lengths.write(rows, tmp_path, "easy").values()
    # Gaps .2, .5, .4: mean .3667, standard error .1528 / sqrt(3) = .0882, times Student's 4.303 for two degrees: .3795.
    assert "| 8 | 0.20 | 0.50 0.90 0.60; **0.67** | - | 0.30 0.40 0.20; **0.30** | +0.37 [-0.01, +0.75] | - |" in table
    # GRPO's end, .3, is half way from .2 to .4, so after 10 of the 20 updates in which GRPO's mean came there. Where
    # seeds are drawn whose end is .333, GRPO needs all 40 updates and the other 13.3.
    assert table.splitlines()[-1].endswith("| - | 0.50 [0.33, 0.50] | 0.50 [0.33, 0.50] |")
    page = (tmp_path / "results.md").read_text()
    assert page.startswith(f"before\n\n*Ends by chain length, easy*\n\n{table}\n\nafter") and "old" not in page
    assert (tmp_path / "images" / "headroom-lengths-easy.png").read_bytes().startswith(b"\x89PNG")
    assert lengths.write(rows[:6], tmp_path) == {}


def test_a_resample_in_which_grpo_or_the_arm_never_comes_there_is_counted() -> None:
    from plain_torch import headroom

    grpo = [curve_of("grpo_2e-4", seed, (0.2, 0.3, 0.4), 1.0) for seed in range(3)]
    arm = [curve_of("step_2e-4", seed, (0.2, 0.2, 0.2 if seed else 0.9), 1.0) for seed in range(3)]
    text, undefined = headroom.share(arm, grpo, headroom.SPENT["updates"])
    assert text.startswith("0.93 [") and abs(undefined - (2 / 3) ** 3) < 0.03  # the one seed that rises is not drawn
    still = [curve_of("grpo_2e-4", 0, (0.3, 0.2, 0.2), 1.0)]  # ends below where all begin: no speed to be compared
    assert headroom.share([curve_of("step_2e-4", 0, (0.3, 0.6, 0.9), 1.0)], still, headroom.SPENT["updates"]) == (
        "no gain",
        1,
    )
    assert headroom.spearman([1, 2, 2, 3], [10, 30, 20, 40]) == pytest.approx(0.9486833)
