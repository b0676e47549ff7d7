"""The entropies of the distributions that a response was drawn from: with each token already, if asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capo_ray.config.credit import Entropies
from capo_ray.evidence.lines import ResponseLine
from capo_ray.evidence.source import EvidenceSource
from capo_ray.types import Evidence, Judged, Problem


class EntropySource(EvidenceSource):
    """The entropies [T] that the engine sampled with."""

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence]:
        """Nobody is asked: they came with the response."""
        return [Evidence(entropies=m.trajectory.response.entropies) for m in members]

    @classmethod
    def read(cls, line: ResponseLine, asked: Entropies | None) -> Evidence:
        """The field `entropies` [T]."""
        return Evidence(entropies=np.array(line.per_token("entropies", asked)))
