"""How likely the policy's own engine finds the reference answer after each step of a response (MIG, ACPO).

prompt + steps[:k] + answer cue + answer  ->  l_k = mean logprob of the answer's tokens, k = 0..K
"""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.config import TrainConfig
from capo_ray.config.credit import AnswerLogprobs
from capo_ray.evidence.lines import ResponseLine
from capo_ray.evidence.source import Doors, EvidenceSource
from capo_ray.types import Completion, Evidence, Judged, Problem


class AnswerSource(EvidenceSource):
    """The K+1 mean logprobs of the reference answer after 0..K steps of each member."""

    def __init__(self, asked: AnswerLogprobs, doors: Doors) -> None:
        self._cue, self._tokenizer, self._engine = asked.cue, doors.tokenizer, doors.engine

    @classmethod
    def deadline_s(cls, config: TrainConfig) -> float:
        """One call of the engine."""
        return config.rollout.deadline_s

    def room_tokens(self, problem: Problem) -> int:
        """Cue and answer stand behind a whole response."""
        return sum(map(len, self._behind(problem)))

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence]:
        """Scored by one version of the weights.

        Equal prefixes of siblings (the bare prompt is one) are scored once. All prefixes of a group go to the engine in
        one batch, in which a prefix reads the whole blocks that another has computed, or is computing in the same step.
        """
        cue, answer = self._behind(problem)
        sequences = [
            [
                (*member.trajectory.prompt_ids.tolist(), *said[:end], *cue, *answer)
                for end in (0, *(end for _, end in member.steps))
            ]
            for member in members
            for said in (_said(member.trajectory.response, self._tokenizer.eos_id),)
        ]
        unique = list(dict.fromkeys(sequence for row in sequences for sequence in row))
        scores = await self._engine.score(unique, [len(sequence) - len(answer) for sequence in unique])
        means = {sequence: sum(score) / len(score) for sequence, score in zip(unique, scores, strict=True)}
        return [Evidence(answer_logprobs=tuple(means[sequence] for sequence in row)) for row in sequences]

    @classmethod
    def read(cls, line: ResponseLine, asked: AnswerLogprobs | None) -> Evidence:
        """The field `answer_logprobs` [K+1]."""
        return Evidence(answer_logprobs=line.per_prefix("answer_logprobs", asked, logprobs=True))

    def _behind(self, problem: Problem) -> tuple[list[int], list[int]]:
        """The token ids of the answer cue and of the reference answer."""
        return self._tokenizer.encode(self._cue), self._tokenizer.encode_data(problem.answer)


def _said(response: Completion, eos: int) -> tuple[int, ...]:
    """The tokens of a response without the one that ended it, which need not be the tokenizer's own end-of-sequence.

    Models may have several (`eos_token_id` of generation_config.json is a list); after any of them no answer follows.
    """
    ids = tuple(response.token_ids.tolist())
    return ids[:-1] if response.finish == "stop" or ids[-1:] == (eos,) else ids
