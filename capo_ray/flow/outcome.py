"""How a run ended: its figures for the summary, or the exception that ended it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capo_ray.flow.state import RunState


@dataclass
class RunOutcome:
    """The figures of a run that ended well; `final` is its last evaluation's, empty where there was none.

    `stopped_early` says why it made fewer than `run.num_updates` updates; `asked_to_end`: a signal did, and the run was
    not evaluated at its end.
    """

    final: dict[str, Any]
    state: RunState
    stopped_early: str = ""
    asked_to_end: bool = False


def first_cause(failure: BaseException) -> BaseException:
    """The first plain exception inside nested groups."""
    cause = failure
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
