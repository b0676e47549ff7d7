"""Credit for the padded arrays of another trainer: verdicts, critiques and CAPO's advantage for every token.

responses [B, T], mask [B, T], the group of each row -> capo_ray.verify, critique, credit -> advantages [B, T]
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

import capo_ray


def advantages(
    tokenizer: Any,
    questions: Sequence[str],
    answers: Sequence[str],
    responses: np.ndarray,
    mask: np.ndarray,
    groups: Sequence[Hashable],
    method: str = "capo",
    critic: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """[B, T] advantages by `method`, 0 where the mask is; rows of the same group are the responses to one problem.

    `critic` is the configuration of one (`{"critic": "calculator"}`); None where the method reads no critiques.
    """
    pieces = [capo_ray.spell(tokenizer, row[keep]) for row, keep in zip(responses, mask.astype(bool), strict=True)]
    texts = ["".join(row) for row in pieces]
    verdicts = capo_ray.verify(zip(answers, texts, strict=True))
    members: dict[Hashable, list[int]] = {}
    for row, name in enumerate(groups):
        members.setdefault(name, []).append(row)
    judged = [
        {"text": text, "tokens": tokens, "reward": verdict.reward, "extracted": verdict.extracted}
        for text, tokens, verdict in zip(texts, pieces, verdicts, strict=True)
    ]
    together = [{"responses": [judged[row] for row in rows]} for rows in members.values()]
    order = [row for rows in members.values() for row in rows]
    if critic is not None:
        # GRPO reads no evidence, so its credit says where the steps are: the critic is to see these very steps.
        cut = [one for group in capo_ray.credit(together, "grpo") for one in group.responses]
        solutions = []
        for row, one in zip(order, cut, strict=True):
            judged[row]["steps"] = [list(span) for span in one.steps]
            steps = ["".join(pieces[row][start:end]) for start, end in one.steps]
            solutions.append({"question": questions[row], "answer": answers[row], "steps": steps})
        for row, judgement in zip(order, capo_ray.critique(solutions, critic), strict=True):
            judged[row]["flagged"] = [sorted(c.flagged) for c in judgement.critiques if c.flagged is not None]
    credited = [one for group in capo_ray.credit(together, method) for one in group.responses]
    result = np.zeros(responses.shape)
    for row, one in zip(order, credited, strict=True):
        result[row, mask[row].astype(bool)] = one.advantages
    return result
