"""This house's requests and answers in vLLM's terms, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from capo_ray.engines.tokenizer import HfTokenizer
from capo_ray.protocols import Sampling
from capo_ray.types import Completion, Finish, VersionRun

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

TOP_LOGPROBS = 64
"""Most tokens of a distribution that are read for its entropy, where the vocabulary is larger than this twice over."""
_FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "aborted", "repetition": "stop"}


def entropy_logprobs(vocab_size: int) -> int:
    """How many of a position's logprobs its entropy is made from: all of a small vocabulary, else the largest."""
    return vocab_size if vocab_size <= 2 * TOP_LOGPROBS else TOP_LOGPROBS


def sampling_params(sampling: Sampling, index: int, max_tokens: int, vocab_size: int) -> SamplingParams:
    """vLLM's parameters of sample `index`; temperature 0 is greedy, its logprobs are at temperature 1."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    greedy = sampling.temperature == 0
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=1.0 if greedy else sampling.top_p,
        max_tokens=max_tokens,
        seed=None if sampling.seed is None else sampling.seed + index,
        stop_token_ids=list(sampling.stop_token_ids),
        stop=list(sampling.stop_strings),
        logprobs=entropy_logprobs(vocab_size) if sampling.entropies else 0,
        flat_logprobs=True,
        detokenize=bool(sampling.stop_strings),  # which are looked for in the text
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=None if sampling.regex is None else StructuredOutputsParams(regex=sampling.regex),
    )


def score_params(*, read_cache: bool = False) -> SamplingParams:
    """vLLM's parameters of a request that scores its own prompt and throws the one sampled token away.

    With `read_cache` a cached prefix is not computed again, and its logprobs are then undefined.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    params.skip_reading_prefix_cache = not read_cache
    return params


def completion(output: RequestOutput, tokenizer: HfTokenizer, *, entropies: bool = False) -> Completion:
    """The completion in a finished request's output; every token knows the version it was sampled under."""
    sample = output.outputs[0]
    token_ids = np.array(sample.token_ids, np.int32)
    logprobs: Any = sample.logprobs
    values, heights = np.empty(0, np.float32), np.empty(0, np.float32)
    if len(token_ids):
        # Of each position the sampled token comes first, then the largest in order where they were asked for.
        values = np.array(logprobs.logprobs, np.float32)[logprobs.start_indices]
    if entropies and len(token_ids):
        bounds = zip(logprobs.start_indices, logprobs.end_indices, strict=True)
        heights = np.array([entropy(logprobs.logprobs[start + 1 : end]) for start, end in bounds], np.float32)
    spans = sample.weight_versions or []
    runs = tuple(VersionRun(int(span.version), span.end) for span in spans)
    if len(values) != len(token_ids) or (runs[-1].end if runs else 0) != len(token_ids):
        raise RuntimeError(
            f"vLLM returned {len(token_ids)} tokens, {len(values)} logprobs and versions up to {runs}; expected as many"
        )
    text, char_ends = tokenizer.decode_pieces(sample.token_ids)
    return Completion(
        token_ids, values, np.array(char_ends, np.int32), text, runs, _FINISH[sample.finish_reason or "abort"], heights
    )


def entropy(logprobs: Sequence[float]) -> float:
    """The entropy in nats of a distribution from its largest logprobs, what they leave counting as one lump.

    Exact where they are all there are. With a rest of mass R over m more tokens it is too low, by at most R ln(m): that
    much if the rest is even, nothing if it is a single token. A nucleus leaves nothing, so there it is exact again.
    """
    listed = math.fsum(-math.exp(x) * x for x in logprobs if x > -math.inf)
    rest = 1.0 - math.fsum(map(math.exp, logprobs))
    # fp32 probabilities do not sum to 1 to the last digit; that is no mass.
    return listed - rest * math.log(rest) if rest > 1e-6 else listed


def version_of(output: RequestOutput) -> int:
    """The version that a score comes from: that of its one sampled token, since a swap begins scores again."""
    spans = output.outputs[0].weight_versions
    if not spans:
        raise RuntimeError("vLLM returned a score without the version of its weights")
    return int(spans[-1].version)


def scored(output: RequestOutput, start: int) -> tuple[float, ...]:
    """The logprobs of the prompt's tokens [start, end), start >= 1."""
    flat: Any = output.prompt_logprobs
    # One entry per token but the first, which has no context.
    return tuple(flat.logprobs[start - 1 :])
