"""What a run knows of itself beside the weights, and its checkpoint: enough to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from capo_ray.checkpoint import read_state
from capo_ray.flow.entropy_control import EntropyState
from capo_ray.flow.figures import CriticScore
from capo_ray.flow.group import CreditedGroup
from capo_ray.problems import read_problem
from capo_ray.runs.layout import STATE_FILE
from capo_ray.types import Problem


@dataclass
class RunState:
    """Counters of a run. `seconds` are those of earlier sessions.

    `num_stale` counts groups, and `num_masked_tokens` those of trained groups, that were too old to be trained.
    `outstanding` are (problem, attempt) drawn but neither trained nor dropped at the checkpoint; `initial` are the
    figures of the first evaluation; `reference_version` is that of the policy which KL is measured from, None as long
    as it is the first one.
    """

    version: int = 0
    next_group: int = 0
    num_trajectories: int = 0
    num_trained: int = 0
    num_stale: int = 0
    num_masked_tokens: int = 0
    num_too_long: int = 0
    initial: dict[str, Any] | None = None
    seconds: float = 0.0
    reference_version: int | None = None
    entropy: EntropyState = field(default_factory=EntropyState)
    critic: CriticScore = field(default_factory=CriticScore)
    outstanding: list[tuple[Problem, int]] = field(default_factory=list)

    def count(self, group: CreditedGroup) -> None:
        """Add one group that reached the end of its way."""
        self.num_trajectories += len(group.group.members)

    def to_payload(
        self, outstanding: Sequence[tuple[Problem, int]], cursor: Mapping[str, Any], elapsed_s: float
    ) -> dict[str, Any]:
        """This moment as JSON types: the counters, the groups under way and the problem cursor."""
        return {
            **asdict(self),
            "seconds": self.seconds + elapsed_s,
            "outstanding": [[asdict(problem), attempt + 1] for problem, attempt in outstanding],
            "problems": dict(cursor),
        }


def read_checkpoint(directory: Path) -> tuple[RunState, dict[str, Any]]:
    """The run state and the problem cursor of a verified checkpoint."""
    payload = read_state(directory / STATE_FILE)
    problems = payload.pop("problems")
    payload["outstanding"] = [(read_problem(problem), attempt) for problem, attempt in payload["outstanding"]]
    payload["entropy"] = EntropyState(**payload["entropy"])
    payload["critic"] = CriticScore(**payload.get("critic", {}))
    payload["critic"].figures()  # told already: the next row's are of what comes from here on
    if "initial_accuracy" in payload:  # of a run from before evaluations had intervals
        payload["initial"] = {"accuracy": payload.pop("initial_accuracy")}
    return RunState(**payload), problems


@dataclass
class SftState:
    """Counters of a supervised run. `seconds` are those of earlier sessions."""

    version: int = 0
    num_examples: int = 0
    num_too_long: int = 0
    seconds: float = 0.0


def read_sft_checkpoint(directory: Path) -> tuple[SftState, dict[str, Any]]:
    """The counters and the lessons' cursor of a verified checkpoint."""
    payload = read_state(directory / STATE_FILE)
    lessons = payload.pop("lessons")
    return SftState(**payload), lessons
