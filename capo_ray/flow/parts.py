"""What a run is made of, as the flow sees it: doors only, whoever stands behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from capo_ray.checkpoint import CheckpointStore
from capo_ray.config import SftConfig, TrainConfig
from capo_ray.flow.quarantine import Quarantine
from capo_ray.problems import ProblemSet, ProblemSource
from capo_ray.protocols import (
    Environment,
    Judge,
    LearnerGroup,
    Ledger,
    Publisher,
    RewardModel,
    TextEngine,
    Tokenizer,
    Tracker,
    Trainer,
    Verifier,
)
from capo_ray.types import Group, GroupCredit, Problem, Watched

StepTruth = Callable[[Problem, Sequence[str]], frozenset[int]]


class Progress(Protocol):
    """What a person watches."""

    def update(self, **figures: Any) -> None:
        """Show the given figures; those not given stay as they were."""


class Transcripts(Protocol):
    """Where sampled groups are written down for people to read."""

    def write_group(self, update: int, group: Group, credit: GroupCredit, watched: Watched) -> None:
        """Append the line of a group; `watched` as in `UpdateReport`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a run talks to. The flow opens none of it and closes none of it."""

    config: TrainConfig
    tokenizer: Tokenizer
    problems: ProblemSet
    engine: TextEngine
    verifier: Verifier
    judge: Judge | None
    learner: LearnerGroup
    publisher: Publisher
    ledger: Ledger
    checkpoints: CheckpointStore
    tracker: Tracker
    transcripts: Transcripts
    progress: Progress
    environment: Environment | None = None
    """Who replies to the policy's turns; None: a response is one turn."""
    reward_model: RewardModel | None = None
    """The model that rewards tokens; None where the credit rule reads no such rewards."""
    step_truth: StepTruth | None = None
    quarantine: Quarantine = field(default_factory=Quarantine)
    part_stats: Callable[[], Mapping[str, float]] = dict
    """Figures of the parts themselves (queue depths, restarts, critic tier), names as in metrics."""

    @property
    def stops(self) -> dict[str, Any]:
        """What ends the policy's responses, in the terms of `Sampling`."""
        model = self.config.model
        ids = self.tokenizer.stop_ids(model.stop_tokens) if model.stop_tokens else ()
        return {"stop_token_ids": ids, "stop_strings": model.stop_strings}


@dataclass(frozen=True, slots=True)
class SftParts:
    """Everything a supervised run talks to, as `Parts`."""

    config: SftConfig
    tokenizer: Tokenizer
    lessons: ProblemSource
    learner: Trainer
    checkpoints: CheckpointStore
    tracker: Tracker
    progress: Progress
    reward_model: None = None
