"""The keep rule in Hugging Face: a sequence whose keys and values are each as old as the weights that wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from capo_ray.types import Completion


def kept_logprobs(
    model: Any, versions: Mapping[int, Mapping[str, Any]], prompt: Sequence[int], done: Completion
) -> list[float]:
    """Hugging Face's logprobs of the completion, each run computed under its own version over the older runs' cache.

    The step that samples token i is the one that writes the keys of token i - 1, and the prompt's for the first.
    """
    import torch
    from transformers import DynamicCache

    ids = [*prompt, *done.token_ids]
    cache, found, at = DynamicCache(), [], 0
    for run in done.versions:
        model.load_state_dict(versions[run.version], strict=False)
        end = len(prompt) + run.end - 1
        with torch.no_grad():
            logits = model(torch.tensor([ids[at:end]]), past_key_values=cache, use_cache=True).logits[0].float()
        picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[at + 1 : end + 1])[:, None])[:, 0]
        found += picked[max(0, len(prompt) - 1 - at) :].tolist()
        at = end
    return found


@contextmanager
def scheduling_ahead() -> Iterator[None]:
    """Engines made inside schedule a step before the last one's tokens are there, as on GPUs; vLLM forbids it on CPUs,
    where it gains nothing, but all of it runs."""
    from vllm.platforms.cpu import CpuPlatform

    usual = CpuPlatform.__dict__["check_and_update_config"]

    def ahead(cls: type, config: Any) -> None:
        usual.__func__(cls, config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(ahead)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        CpuPlatform.check_and_update_config = usual  # type: ignore[method-assign]
