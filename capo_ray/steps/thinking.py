"""The thinking part of a response: what stands before its last `</think>`, where an answer follows.

Without a closing tag nothing is known to be thinking, and without an answer behind it nothing would be left.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from capo_ray.types import Completion, Trajectory, VersionRun

CLOSE = "</think>"


def answer_start(text: str) -> int:
    """Where the answer behind the thinking part of a text begins; 0 where there is no such part."""
    end = text.rfind(CLOSE) + len(CLOSE)
    return end if end >= len(CLOSE) and text[end:].strip() else 0


def thinking_tokens(response: Completion) -> int:
    """The number of tokens of the thinking part; 0 where there is none."""
    end = answer_start(response.text)
    # A token that reaches over the tag's end starts before it.
    return int(np.searchsorted(response.char_ends, end)) + 1 if end else 0


def without_thinking(path: Trajectory) -> Trajectory:
    """The trajectory with its thinking part moved into the prompt, so that nothing behind sees it as a response."""
    response = path.response
    count = thinking_tokens(response)
    if count in (0, len(response.token_ids)):
        return path
    chars = int(response.char_ends[count - 1])
    rest = replace(
        response,
        token_ids=response.token_ids[count:],
        logprobs=response.logprobs[count:],
        char_ends=response.char_ends[count:] - chars,
        text=response.text[chars:],
        versions=tuple(VersionRun(run.version, run.end - count) for run in response.versions if run.end > count),
        entropies=response.entropies[count:],
    )
    prompt_ids = np.concatenate((path.prompt_ids, response.token_ids[:count]))
    return replace(path, prompt_ids=prompt_ids, response=rest, thinking=count)
