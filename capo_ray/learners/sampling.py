"""Completions of a model in this process, by transformers alone: enough to measure the small ones without an engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch


@torch.inference_mode()
def sample_completions(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    max_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """One sampled completion of each prompt (temperature 0: greedy), end-of-sequence left out.

    Prompts of one length share a batch, so that none is padded.
    """
    generator = torch.Generator().manual_seed(seed)
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    completions: list[list[int]] = [[] for _ in prompts]
    for indices in by_length.values():
        ids = torch.tensor([list(prompts[i]) for i in indices])
        cache, alive = None, torch.ones(len(indices), dtype=torch.bool)
        for _ in range(max_tokens):
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            chosen = _choose(output.logits[:, -1].float(), temperature, top_p, generator)
            alive &= chosen != eos_id
            if not alive.any():
                break
            for row, index in enumerate(indices):
                if alive[row]:
                    completions[index].append(int(chosen[row]))
            ids = chosen[:, None]
    return completions


def _choose(logits_BV: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """One token id per row, [B], drawn from the nucleus of mass `top_p`."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    probs_BV, order_BV = torch.softmax(logits_BV / temperature, -1).sort(-1, descending=True)
    mass_before_BV = probs_BV.cumsum(-1) - probs_BV
    probs_BV = probs_BV.masked_fill(mass_before_BV >= top_p, 0.0)
    picked = torch.multinomial(probs_BV, 1, generator=generator)
    return order_BV.gather(-1, picked)[:, 0]
