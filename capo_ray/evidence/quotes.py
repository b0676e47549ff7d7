"""What the sentences that a response quotes are worth: how likely the policy finds the answer behind them alone (EAPO).

quoted sentences + question (not asked to quote) + answer cue + answer  ->  e = exp(mean logprob of the answer's tokens)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from capo_ray.config import TrainConfig
from capo_ray.config.credit import EvidenceScore
from capo_ray.evidence.lines import ResponseLine
from capo_ray.evidence.source import Doors, EvidenceSource
from capo_ray.steps.quotes import pose, quoted, read_context
from capo_ray.types import Evidence, Judged, Problem


class QuoteSource(EvidenceSource):
    """A number in [0, 1] for each member, 0 where it quotes nothing that stands in the context."""

    def __init__(self, asked: EvidenceScore, doors: Doors) -> None:
        self._cue, self._tokenizer, self._engine = asked.cue, doors.tokenizer, doors.engine
        self._encode_prompt, self._most = doors.encode_prompt, doors.config.rollout.max_response_tokens

    @classmethod
    def deadline_s(cls, config: TrainConfig) -> float:
        """One call of the engine."""
        return config.rollout.deadline_s

    def room_tokens(self, problem: Problem) -> int:
        """By what cue and answer, which stand behind a prompt, are longer than a response."""
        return max(0, sum(map(len, self._behind(problem))) - self._most)

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence]:
        """Scored by one version of the weights, siblings that quote the same once."""
        sentences, rest = read_context(problem.prompt)
        quotes = [quoted(m.trajectory.response.text, sentences) for m in members]
        distinct = list(dict.fromkeys(tuple(sorted(q)) for q in quotes if q is not None))
        cue, answer = self._behind(problem)
        sequences = []
        for numbers in distinct:
            shown = replace(problem, prompt=pose(sentences, numbers, rest))
            sequences.append((*self._encode_prompt(shown), *cue, *answer))
        starts = [len(sequence) - len(answer) for sequence in sequences]
        found = await self._engine.score(sequences, starts) if sequences else ()
        worth = {q: math.exp(sum(row) / len(row)) for q, row in zip(distinct, found, strict=True)}
        scores = [0.0 if q is None else worth[tuple(sorted(q))] for q in quotes]
        return [Evidence(more={EvidenceScore.name: score}) for score in scores]

    @classmethod
    def read(cls, line: ResponseLine, asked: EvidenceScore | None) -> Evidence:
        """The field `evidence_score`: a number from 0 to 1."""
        given = line.given(EvidenceScore.name, asked)
        if given is None:
            return Evidence()
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
            line.refuse(EvidenceScore.name, "a number from 0 to 1", given)
        return Evidence(more={EvidenceScore.name: float(given)})

    def _behind(self, problem: Problem) -> tuple[list[int], list[int]]:
        """The token ids of the answer cue and of the reference answer."""
        return self._tokenizer.encode(self._cue), self._tokenizer.encode_data(problem.answer)
