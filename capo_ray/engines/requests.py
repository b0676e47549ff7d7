"""This house's requests and answers in vLLM's terms, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capo_ray.engines.tokenizer import HfTokenizer
from capo_ray.protocols import Sampling
from capo_ray.types import Completion, Finish, VersionRun

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams

_FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "abort": "aborted", "repetition": "stop"}


def sampling_params(sampling: Sampling, index: int, max_tokens: int) -> SamplingParams:
    """vLLM's parameters of sample `index`; temperature 0 is greedy, its logprobs are at temperature 1."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    greedy = sampling.temperature == 0
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=1.0 if greedy else sampling.top_p,
        max_tokens=max_tokens,
        seed=None if sampling.seed is None else sampling.seed + index,
        stop_token_ids=list(sampling.stop_token_ids),
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
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


def completion(output: RequestOutput, tokenizer: HfTokenizer) -> Completion:
    """The completion in a finished request's output; every token knows the version it was sampled under."""
    sample = output.outputs[0]
    token_ids = tuple(sample.token_ids)
    logprobs: Any = sample.logprobs
    values = tuple(logprobs.logprobs) if token_ids else ()
    spans = sample.weight_versions or []
    runs = tuple(VersionRun(int(span.version), span.end) for span in spans)
    if len(values) != len(token_ids) or (runs[-1].end if runs else 0) != len(token_ids):
        raise RuntimeError(
            f"vLLM returned {len(token_ids)} tokens, {len(values)} logprobs and versions up to {runs}; expected as many"
        )
    text, char_ends = tokenizer.decode_pieces(token_ids)
    return Completion(token_ids, values, char_ends, text, runs, _FINISH[sample.finish_reason or "abort"])


def scored(output: RequestOutput, start: int) -> tuple[float, ...]:
    """The logprobs of the prompt's tokens [start, end), start >= 1."""
    flat: Any = output.prompt_logprobs
    # One entry per token but the first, which has no context.
    return tuple(flat.logprobs[start - 1 :])
