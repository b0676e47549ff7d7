"""The trust gate of a run: its file is read before anything starts, its critic measured before the first group."""

from __future__ import annotations

import sys
from pathlib import Path

from capo_ray.config import TrainConfig
from capo_ray.config.credit import Critiques
from capo_ray.critics.layouts import Solution
from capo_ray.critics.solutions import read_solutions
from capo_ray.critics.trust import judge_labelled, shipped_solutions, to_words, trust_quality
from capo_ray.problems.files import format_of, rows_of
from capo_ray.protocols import Judge, RunFailed


def trust_solutions(config: TrainConfig) -> list[Solution]:
    """The labelled solutions on which the critic is measured; none where there is no gate.

    Raises `RunFailed` on a file that is not there, does not fit, or has no right or no wrong solution.
    """
    critic = config.critic
    if not critic.min_f1 or not config.credit.asked(Critiques):
        return []
    if not critic.trust_file:
        return shipped_solutions(critic.rubric)
    path = Path(critic.trust_file).expanduser()
    if not path.is_file():
        raise RunFailed(f"critic.trust_file: expected a file of solutions with wrong steps, got {path}; check the path")
    try:
        found = list(read_solutions(rows_of(path, format_of(path)), config.steps, 0, lambda note: None))
    except RunFailed as error:
        raise RunFailed(f"critic.trust_file: {path}: {error}") from error
    labelled = [solution for solution in found if solution.wrong is not None]
    num_bad = sum(bool(solution.wrong) for solution in labelled)
    if not 0 < num_bad < len(labelled):
        raise RunFailed(
            f"critic.trust_file: expected solutions with wrong steps and ones without, got {num_bad} and "
            f"{len(labelled) - num_bad} in {path} ({len(found) - len(labelled)} without labels); add what lacks"
        )
    return labelled


async def require_trust(config: TrainConfig, judge: Judge | None) -> None:
    """Says what the critic reached; raises `RunFailed` with the figures where that is below `critic.min_f1`."""
    solutions = trust_solutions(config)
    asked = config.credit.asked(Critiques)
    if not solutions or asked is None or judge is None:
        return
    judgements = await judge_labelled(judge, solutions, config.critic.num_votes)
    quality = trust_quality(judgements, asked.vote)
    words = to_words(quality, judgements)
    if not quality.first.f1 >= config.critic.min_f1:
        where = config.critic.trust_file or "the shipped solutions"
        raise RunFailed(
            f"critic.min_f1: expected a critic whose F1 of first errors on {where} is at least "
            f"{config.critic.min_f1:g}, got {words}; choose another critic, rubric or vote (capo-ray critique --gold "
            "compares them), or lower critic.min_f1"
        )
    print(f"critic: F1 of first errors {words}", file=sys.stderr)
