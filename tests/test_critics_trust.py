"""The trust gate: a critic that is worse than asked for is refused with its figures, before anything is trained."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from capo_ray.cli import main
from capo_ray.cli.compose import compose_train
from capo_ray.config import TrainConfig
from capo_ray.critics import build_judge
from capo_ray.place.trust import require_trust, trust_solutions
from capo_ray.protocols import Judge, JudgeRequest, PartTimeout, RunFailed
from capo_ray.types import Critique, Problem, Provenance

# What arithmetic sees: two of three first errors, and a right solution; the second right one it cannot judge at all.
LABELLED = [
    {"problem": "2+2?", "steps": ["2+2 = 5", "So 5."], "label": 0},
    {"problem": "2+2+1?", "steps": ["2+2 = 4", "4+1 = 6"], "label": 1},
    {"problem": "2*3?", "steps": ["2+3 = 5", "So 5."], "label": 0},
    {"problem": "1+1?", "steps": ["1+1 = 2", "So 2."], "label": -1},
    {"problem": "Why?", "steps": ["Because."], "label": -1},
]
# found 2/3, passed 1/2 (what cannot be read is not passed): 2 * 2/3 * 1/2 / (2/3 + 1/2)
F1 = 4 / 7


def config(path: Path, rows: Sequence[Any], least: float, *words: str) -> TrainConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = (f"critic.min_f1={least}", f"critic.trust_file={path}")
    return compose_train(["critic=calculator", "data=chains", *gate, *words])


def gate(config: TrainConfig, judge: Judge | None = None) -> None:
    calculator = build_judge(config.critic, vote="majority", quorum=1)
    asyncio.run(require_trust(config, judge or calculator))


def test_a_critic_as_good_as_asked_for_is_let_in_and_its_figures_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate(config(tmp_path / "t.jsonl", LABELLED, F1 - 1e-6))
    said = capsys.readouterr().err
    assert "critic: F1 of first errors 0.571 [" in said
    assert "first error found in 2 of 3 wrong solutions, 1 of 2 right ones passed" in said
    assert "step precision 1.00, recall 0.67, 1 without a critique that could be read" in said


def test_a_worse_one_is_refused_with_its_figures_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as refused:
        gate(config(tmp_path / "t.jsonl", LABELLED, F1 + 1e-6))
    words = str(refused.value)
    assert words.startswith("critic.min_f1: expected a critic whose F1 of first errors on") and "\n" not in words
    assert "is at least 0.57143, got 0.571 [" in words and "(most often: no verdict)" in words
    assert "choose another critic, rubric or vote" in words


class Says:
    """A critic with one answer to everything; none at all: it is late."""

    def __init__(self, flagged: frozenset[int] | None, *, late: bool = False) -> None:
        self._flagged, self._late = flagged, late

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        if self._late:
            raise PartTimeout("late")
        reason = "no verdict" if self._flagged is None else ""
        critique = Critique(self._flagged, None, "", reason, Provenance("m", "h", 0))
        return tuple((critique,) * num_votes for _ in responses)


@pytest.mark.parametrize("judge", [Says(frozenset()), Says(frozenset({0, 1})), Says(None), Says(None, late=True)])
def test_a_critic_that_always_says_the_same_or_nothing_passes_no_gate(judge: Says, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"at least 0\.01, got 0\.000"):
        gate(config(tmp_path / "t.jsonl", LABELLED[:4], 0.01), judge)


def test_without_a_file_the_solutions_shipped_for_the_rubric_are_taken() -> None:
    chains = trust_solutions(compose_train(["critic.min_f1=0.5"]))
    assert {bool(solution.wrong) for solution in chains} == {True, False}
    words = trust_solutions(compose_train(["critic.min_f1=0.5", "critic.rubric=every_step"]))
    assert words[0].problem.prompt != chains[0].problem.prompt
    assert trust_solutions(compose_train([])) == trust_solutions(compose_train(["credit=grpo"])) == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (None, "expected a file of solutions with wrong steps, got"),
        ([LABELLED[0]], "expected solutions with wrong steps and ones without, got 1 and 0 in"),
        ([*LABELLED, {"problem": "q", "steps": ["a"], "label": 9}], 'line 6: "label" must be -1 or'),
    ],
)
def test_a_dry_run_reads_the_file_and_refuses_what_does_not_fit(
    lines: list[Any] | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.jsonl"
    if lines is not None:
        config(path, lines, 0.5)
    assert main(["train", "--dry-run", "critic.min_f1=0.5", f"critic.trust_file={path}"]) == 1
    said = capsys.readouterr().err
    assert f"critic.trust_file: {'' if 'line' not in words else path}" in said and words in said
