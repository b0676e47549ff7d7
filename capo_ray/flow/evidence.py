"""Evidence that the policy's own engine gives: how likely the answer is after each step, or the steps under a hint.

prompt + steps[:k] + answer cue + answer  ->  l_k = mean logprob of the answer's tokens, k = 0..K   (MIG, ACPO)
prompt + hint + response  ->  log pi(y_t | hint) - log pi(y_t)                                         (RLSD)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capo_ray.arrays import FloatArray
from capo_ray.config.credit import AnswerLogprobs
from capo_ray.flow.parts import Parts
from capo_ray.types import Completion, Judged, Problem


def answer_tokens(parts: Parts, problem: Problem) -> tuple[list[int], list[int]]:
    """The token ids of the answer cue and of the reference answer."""
    asked = parts.config.credit.asked(AnswerLogprobs)
    assert asked is not None, "only a method that reads them scores answers"
    cue = parts.tokenizer.encode(asked.cue)
    return cue, parts.tokenizer.encode_data(problem.answer)


async def score_answers(parts: Parts, problem: Problem, members: Sequence[Judged]) -> list[tuple[float, ...]]:
    """For each member the K+1 mean logprobs of the reference answer after 0..K of its steps.

    Equal prefixes of siblings (the bare prompt is one) are scored once. All prefixes of a group go to the engine in one
    batch, in which a prefix reads the whole blocks that another has computed, or is computing in the same step.
    """
    cue, answer = answer_tokens(parts, problem)
    sequences = [
        [
            (*member.trajectory.prompt_ids.tolist(), *said[:end], *cue, *answer)
            for end in (0, *(end for _, end in member.steps))
        ]
        for member in members
        for said in (_said(member.trajectory.response, parts.tokenizer.eos_id),)
    ]
    unique = list(dict.fromkeys(sequence for row in sequences for sequence in row))
    scores = await parts.engine.score(unique, [len(sequence) - len(answer) for sequence in unique])
    means = {sequence: _mean(score) for sequence, score in zip(unique, scores, strict=True)}
    return [tuple(means[sequence] for sequence in row) for row in sequences]


def _said(response: Completion, eos: int) -> tuple[int, ...]:
    """The tokens of a response without the one that ended it, which need not be the tokenizer's own end-of-sequence.

    Models may have several (`eos_token_id` of generation_config.json is a list); after any of them no answer follows.
    """
    ids = tuple(response.token_ids.tolist())
    return ids[:-1] if response.finish == "stop" or ids[-1:] == (eos,) else ids


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


async def score_hints(parts: Parts, members: Sequence[Judged], hinted_prompt: Sequence[int]) -> list[FloatArray]:
    """For each member what the hint adds to the logprob of each of its tokens [T], by one version of the weights."""
    spoken = [m.trajectory for m in members if m.num_tokens]
    plain = [tuple(path.token_ids.tolist()) for path in spoken]
    hinted = [(*hinted_prompt, *path.response.token_ids.tolist()) for path in spoken]
    starts = [len(path.prompt_ids) for path in spoken] + [len(hinted_prompt)] * len(spoken)
    # At temperature 1 on both sides: the sampler's own logprobs may be at another one, or of an older version.
    scores = await parts.engine.score([*plain, *hinted], starts)
    pairs = zip(scores[: len(spoken)], scores[len(spoken) :], strict=True)
    gains = iter([np.array(under, np.float32) - np.array(without, np.float32) for without, under in pairs])
    return [next(gains) if m.num_tokens else np.empty(0, np.float32) for m in members]
