"""Evidence that the policy's own engine gives: how likely the reference answer is after each step.

prompt + steps[:k] + answer cue + answer  ->  l_k = mean logprob of the answer's tokens, k = 0..K   (MIG, ACPO)
"""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.flow.parts import Parts
from capo_ray.types import Judged, Problem


def answer_tokens(parts: Parts, problem: Problem) -> tuple[list[int], list[int]]:
    """The token ids of the answer cue and of the reference answer."""
    cue = parts.tokenizer.encode(getattr(parts.config.credit, "answer_cue", ""))
    return cue, parts.tokenizer.encode_data(problem.answer)


async def score_answers(parts: Parts, problem: Problem, members: Sequence[Judged]) -> list[tuple[float, ...]]:
    """For each member the K+1 mean logprobs of the reference answer after 0..K of its steps."""
    cue, answer = answer_tokens(parts, problem)
    sequences, starts, counts = [], [], []
    for member in members:
        prompt, response = member.trajectory.prompt_ids, member.trajectory.response.token_ids
        ends = [0, *(end for _, end in member.steps)]
        for end in ends:
            body = [token for token in response[:end] if token != parts.tokenizer.eos_id]
            sequences.append([*prompt, *body, *cue, *answer])
            starts.append(len(prompt) + len(body) + len(cue))
        counts.append(len(ends))
    scores = iter(await parts.engine.score(sequences, starts))
    return [tuple(_mean(next(scores)) for _ in range(count)) for count in counts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
