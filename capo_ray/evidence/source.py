"""What every source of evidence is asked; whoever writes one overrides what its kind needs and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from capo_ray.config import TrainConfig
from capo_ray.evidence.lines import ResponseLine
from capo_ray.protocols import Judge, Ledger, RewardModel, TextEngine, Tokenizer, Verifier
from capo_ray.types import Evidence, Judged, Problem


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a source may turn; it takes the two or three that it uses when it is made."""

    config: TrainConfig
    tokenizer: Tokenizer
    engine: TextEngine
    verifier: Verifier
    judge: Judge | None
    reward_model: RewardModel | None
    ledger: Ledger
    encode_prompt: Callable[[Problem], tuple[int, ...]]
    stops: Mapping[str, Any]
    """What ends the policy's responses, in the terms of `Sampling`."""


class EvidenceSource:
    """One kind of evidence in one run, as `asked` wants it."""

    stage: ClassVar[str] = ""
    """The metric `time/STAGE_s` that its seconds per group stand in; empty: none."""

    def __init__(self, asked: Any, doors: Doors) -> None: ...

    @classmethod
    def deadline_s(cls, config: TrainConfig) -> float:
        """The seconds within which a group's evidence is there or an exception was raised."""
        return 0.0

    def room_tokens(self, problem: Problem) -> int:
        """What `model.max_model_len` must hold beside the prompt and a response of full length."""
        return 0

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence] | None:
        """The evidence of each member, all with a valid verdict and at least one of them; None leaves the group out.

        `progress` is the share of the run that is done. Raises `PartTimeout` and `PartLost`, which end the group alone.
        """
        raise NotImplementedError

    def note(self, members: Sequence[Judged]) -> None:
        """Write down, once all evidence of a group is there, what the run keeps of it; invalid members are here too."""

    def figures(self) -> dict[str, float]:
        """What a run watches, names as in metrics."""
        return {}

    @classmethod
    def read(cls, line: ResponseLine, asked: Any) -> Evidence:
        """What a line of `capo-ray credit` says of this kind; `asked` is None where the method does not read it.

        Unless a kind says otherwise: the field of its own name, as it stands, under that name in `Evidence.more`.
        Raises `FieldError` where a field does not fit, or is missing although `line.wants(asked)`.
        """
        if asked is None:
            return Evidence()
        return Evidence(more={asked.name: line.given(asked.name, asked)})
