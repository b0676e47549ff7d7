"""Judges for controls: the flags of another judge moved about, and critics of set precision and recall."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from scripted import ScriptedJudge, ScriptedSource

from capo_ray.config import TrainConfig
from capo_ray.config.credit.requests import Critiques as Asked
from capo_ray.problems.chains import true_wrong_steps
from capo_ray.protocols import Judge, JudgeRequest
from capo_ray.types import Critique, Problem, Provenance
from capo_ray.votes import step_weights

Critiques = tuple[tuple[Critique, ...], ...]
WRONG_FRAC = 0.25
"""The share of wrong steps for which an oracle's false alarms are made to its precision."""


def oracle(config: TrainConfig, asked: Asked, text: str) -> Judge:
    """The critic that `text` describes, `precision,recall`: true labels with errors of its own in each vote."""
    precision, recall = map(float, text.split(","))
    source = ScriptedSource(
        true_wrong_steps, precision=precision, recall=recall, wrong_frac=WRONG_FRAC, seed=config.run.seed
    )
    return ScriptedJudge(source, config.critic, vote=asked.vote, quorum=asked.quorum)


class Shuffled:
    """The critiques of another judge, the step numbers of each response permuted: as many flags, elsewhere."""

    def __init__(self, judge: Judge, seed: int) -> None:
        self._judge, self._rng = judge, random.Random(f"shuffled/{seed}")

    async def critique(self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int) -> Critiques:
        """As `Judge.critique`."""
        critiques = await self._judge.critique(problem, responses, num_votes)
        return tuple(self._moved(row, len(r.steps)) for row, r in zip(critiques, responses, strict=True))

    def _moved(self, critiques: Sequence[Critique], num_steps: int) -> tuple[Critique, ...]:
        order = self._rng.sample(range(num_steps), num_steps)
        return tuple(
            c if c.flagged is None else replace(c, flagged=frozenset(order[s] for s in c.flagged)) for c in critiques
        )


class AtRandom:
    """Each step flagged by chance, as often as the majority of another judge flags the steps of the latest groups."""

    def __init__(self, judge: Judge, seed: int, num_groups: int) -> None:
        self._judge, self._rng = judge, random.Random(f"random/{seed}")
        self._seen: deque[list[float]] = deque(maxlen=num_groups)

    async def critique(self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int) -> Critiques:
        """As `Judge.critique`, with one vote."""
        critiques = await self._judge.critique(problem, responses, num_votes)
        self._seen.append(
            [
                weight
                for row, r in zip(critiques, responses, strict=True)
                for weight in step_weights([c.flagged for c in row if c.flagged is not None], len(r.steps), "majority")
            ]
        )
        weights = [weight for row in self._seen for weight in row]
        return tuple((self._drawn(len(r.steps), sum(weights) / len(weights)),) for r in responses)

    def _drawn(self, num_steps: int, rate: float) -> Critique:
        flagged = frozenset(step for step in range(num_steps) if self._rng.random() < rate)
        return Critique(flagged, not flagged, "", "drawn", Provenance("random", "", 0))
