"""What a hint behind the question changes in how likely the policy finds its own tokens (RLSD).

prompt + hint + response  ->  log pi(y_t | hint) - log pi(y_t)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from capo_ray.config import TrainConfig
from capo_ray.config.credit import HintedLogprobs
from capo_ray.config.credit.hints import ANSWER_SLOT
from capo_ray.evidence.lines import ResponseLine
from capo_ray.evidence.source import Doors, EvidenceSource
from capo_ray.types import Evidence, Judged, Problem


class HintSource(EvidenceSource):
    """What the hint adds to the logprob of each sampled token [A] of each member."""

    def __init__(self, asked: HintedLogprobs, doors: Doors) -> None:
        self._hint, self._engine, self._encode_prompt = asked.hint, doors.engine, doors.encode_prompt

    @classmethod
    def deadline_s(cls, config: TrainConfig) -> float:
        """One call of the engine."""
        return config.rollout.deadline_s

    def room_tokens(self, problem: Problem) -> int:
        """By what the hint makes the prompt longer."""
        return len(self._hinted_prompt(problem)) - len(self._encode_prompt(problem))

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence]:
        """Scored with and without the hint by one version of the weights."""
        hinted_prompt = self._hinted_prompt(problem)
        spoken = [m.trajectory for m in members if m.num_tokens]
        plain = [tuple(path.token_ids.tolist()) for path in spoken]
        hinted = [(*hinted_prompt, *path.response.token_ids.tolist()) for path in spoken]
        starts = [len(path.prompt_ids) for path in spoken] + [len(hinted_prompt)] * len(spoken)
        # At temperature 1 on both sides: the sampler's own logprobs may be at another one, or of an older version.
        scores = await self._engine.score([*plain, *hinted], starts)
        pairs = zip(spoken, scores[: len(spoken)], scores[len(spoken) :], strict=True)
        gains = iter(
            [
                (np.array(under, np.float32) - np.array(without, np.float32))[path.response.sampled()]
                for path, without, under in pairs
            ]
        )
        return [Evidence(hint_gains=next(gains) if m.num_tokens else np.empty(0, np.float32)) for m in members]

    @classmethod
    def read(cls, line: ResponseLine, asked: HintedLogprobs | None) -> Evidence:
        """The field `hint_gains` [T], or `hinted_logprobs` [T] less `logprobs` [T]."""
        if gains := line.per_token("hint_gains", None):
            return Evidence(hint_gains=np.array(gains))
        hinted = line.per_token("hinted_logprobs", asked, logprobs=True)
        plain = line.per_token("logprobs", None) if hinted else ()
        if hinted and not plain:
            line.refuse("logprobs", f"{len(hinted)} numbers beside hinted_logprobs, to be compared with them", None)
        return Evidence(hint_gains=np.array(hinted) - np.array(plain))

    def _hinted_prompt(self, problem: Problem) -> tuple[int, ...]:
        """The policy's prompt with the reference answer told behind the question."""
        told = self._hint.replace(ANSWER_SLOT, problem.answer)
        return self._encode_prompt(replace(problem, prompt=problem.prompt + told))
