"""What is not a number goes no further: such a response is written down, counted and left out, and the run goes on.

response --logprob, entropy not finite--> quarantine.jsonl, ledger `dropped: non_finite`   the rest of its group goes on
credit   --advantage not finite, absurd-/                                                   `in a row`: the run ends

Invariant: what is quarantined stands outside all means, counts and updates: it is invalid, not zero.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from capo_ray.arrays import Runs
from capo_ray.protocols import Ledger, RunFailed
from capo_ray.runs.layout import QUARANTINE_FILE
from capo_ray.types import Completion, Group, GroupCredit, Trajectory

REASON = "non_finite"
ABSURD = 1e6
"""An advantage of this size is no credit: rewards are of order 1, and a loss of it would drown all others."""
MAX_FILE_BYTES = 16 << 20
MAX_TEXT_CHARS = 50_000
_log = logging.getLogger(__name__)


class Quarantined(RuntimeError):
    """Nothing is left of a group; the message names the first cause."""


def unsound_response(response: Completion) -> str:
    """Which figure of an engine's response is not a number, or nothing."""
    for name, row in (("logprob", response.logprobs), ("entropy", response.entropies)):
        bad = np.flatnonzero(~np.isfinite(np.asarray(row, dtype=np.float64)))
        if bad.size:
            return f"the {name} of token {bad[0]} of {len(row)} is {row[int(bad[0])]}"
    return ""


def unsound_credit(credit: GroupCredit, member: int) -> str:
    """Which advantage or weight of a member is not finite, or larger than `ABSURD`; or nothing."""
    rows = (("advantage", credit.advantages), ("entropy weight", credit.entropy_weights))
    for name, of_members in (*rows, ("imitation weight", credit.imitation_weights)):
        own = of_members[member] if len(of_members) else ()
        row = own.expand() if isinstance(own, Runs) else np.asarray(own, dtype=np.float64)
        bad = np.flatnonzero(~(np.abs(row) <= ABSURD))
        if bad.size:
            return f"the {name} of token {bad[0]} of {len(row)} is {row[bad[0]]:g}"
    return ""


def without(credit: GroupCredit, kept: Sequence[int]) -> GroupCredit:
    """The credit of the members in `kept` alone."""
    size = len(credit.included)
    rows: dict[str, Any] = {f.name: getattr(credit, f.name) for f in fields(credit)}
    return replace(
        credit,
        **{n: tuple(x[i] for i in kept) for n, x in rows.items() if isinstance(x, Sequence) and len(x) == size},
    )


class Quarantine:
    """Where unsound responses end: a file of bounded size (or none), and the count of groups in a row that had any."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._total = self._in_a_row = 0
        self._is_full = False

    def take(self, trajectory: Trajectory, cause: str) -> None:
        """Write one response down with its text and what is wrong with it."""
        self._total += 1
        row = {
            "key": str(trajectory.key),
            "cause": cause,
            "versions": [[run.version, run.end] for run in trajectory.response.versions],
            "text": trajectory.response.text[:MAX_TEXT_CHARS],
        }
        _log.warning("response %s is quarantined: %s", trajectory.key, cause)
        line = json.dumps(row, ensure_ascii=True) + "\n"
        if self._path is None or self._is_full:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                self._is_full = file.tell() + len(line) > MAX_FILE_BYTES
                if not self._is_full:
                    file.write(line)
        except OSError as error:  # it is counted and in the ledger all the same
            self._is_full = True
            _log.warning("%s cannot be written (%s): quarantined responses are only counted", self._path, error)

    def end_group(self, cause: str, most_in_a_row: int) -> None:
        """Count a group by the first of its causes, or nothing; `RunFailed` when too many in a row have one."""
        self._in_a_row = self._in_a_row + 1 if cause else 0
        if self._in_a_row >= most_in_a_row:
            raise RunFailed(
                f"expected finite logprobs and advantages, got others in {self._in_a_row} groups in a row "
                f"(run.max_nonfinite_groups), the last because {cause}; look at {self._path or QUARANTINE_FILE}, and "
                f"try another dtype for the engine or a smaller learner.lr"
            )

    def figures(self) -> dict[str, float]:
        """Responses quarantined over the run."""
        return {"rollout/quarantined_total": float(self._total)}


class Gate:
    """Where a group passes after it was generated and after it was credited; what is unsound stays behind."""

    def __init__(self, quarantine: Quarantine, ledger: Ledger, most_in_a_row: int) -> None:
        self._quarantine, self._ledger, self._most_in_a_row = quarantine, ledger, most_in_a_row

    def responses(self, trajectories: Sequence[Trajectory]) -> tuple[list[Trajectory], str]:
        """The responses whose figures are numbers, and what is wrong with the first other one, or nothing.

        Raises `Quarantined` where none is left.
        """
        causes = {i: cause for i, t in enumerate(trajectories) if (cause := unsound_response(t.response))}
        first = self._drop(trajectories, causes)
        if len(causes) == len(trajectories):
            self._quarantine.end_group(first, self._most_in_a_row)
            raise Quarantined(f"no response of the group has finite figures: {first}")
        return [t for i, t in enumerate(trajectories) if i not in causes], first

    def credited(self, group: Group, credit: GroupCredit, before: str) -> tuple[Group, GroupCredit]:
        """The members whose credit can be trained; `before` is what was wrong with a response of the group.

        Raises `Quarantined` where none is left.
        """
        size = len(group.members)
        causes = {i: cause for i in range(size) if (cause := unsound_credit(credit, i))}
        first = self._drop([m.trajectory for m in group.members], causes)
        self._quarantine.end_group(before or first, self._most_in_a_row)
        if not causes:
            return group, credit
        kept = [i for i in range(size) if i not in causes]
        if not kept:
            raise Quarantined(f"no response of the group has credit that can be trained: {first}")
        return replace(group, members=tuple(group.members[i] for i in kept)), without(credit, kept)

    def _drop(self, trajectories: Sequence[Trajectory], causes: dict[int, str]) -> str:
        """Quarantine trajectories, by their place, each for its cause; the first cause, or nothing."""
        for place, cause in causes.items():
            self._quarantine.take(trajectories[place], cause)
        self._ledger.record([trajectories[place].key for place in causes], "dropped", reason=REASON)
        return next(iter(causes.values()), "")
