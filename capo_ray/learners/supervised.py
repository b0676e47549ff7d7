"""Supervised fine-tuning in plain torch: cross-entropy on the completion's tokens, one process.

Loss of an update = weighted sum over its tokens / sum of the weights in the whole batch, so microbatches do not
change the gradient. A completion token weighs 1, a prompt token `prompt_loss_weight` (0 by default). The same config,
model and examples give the same losses.

Axis letters: B examples of a microbatch, L padded tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from capo_ray.config.sft import SftConfig
from capo_ray.protocols import RunFailed


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and completion (end-of-sequence included), the first `num_prompt_tokens` being the prompt."""

    token_ids: tuple[int, ...]
    num_prompt_tokens: int


def train_supervised(
    model: torch.nn.Module,
    examples: Iterator[Example],
    config: SftConfig,
    on_progress: Callable[[int, float], None] = lambda update, loss: None,
) -> list[float]:
    """The mean token loss (nats) of each of the config's updates; `on_progress(updates done, loss)` after each.

    The model is trained in place. Raises RunFailed on a loss that is not finite, and where the examples run out.
    """
    losses = []
    for loss in supervised_updates(model, examples, config):
        losses.append(loss)
        on_progress(len(losses), loss)
    return losses


def supervised_updates(model: torch.nn.Module, examples: Iterator[Example], config: SftConfig) -> Iterator[float]:
    """Train one update per item asked for; yields its loss, at most `num_updates` times."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    model.train()
    for update in range(config.num_updates):
        batch = list(islice(examples, config.batch_size))
        if len(batch) < config.batch_size:
            raise RunFailed(f"expected {config.batch_size} examples for update {update}, got {len(batch)}: give more")
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * lr_scale(update, config)
        loss = _accumulate(model, batch, config)
        if not math.isfinite(loss):
            raise RunFailed(f"the loss of update {update} is {loss}: lower learning_rate ({config.learning_rate:g})")
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss
    model.eval()


def lr_scale(update: int, config: SftConfig) -> float:
    """The factor on the learning rate: linear warm-up, then a cosine down to `min_lr_frac`."""
    if update < config.warmup_updates:
        return (update + 1) / config.warmup_updates
    done = (update - config.warmup_updates) / max(1, config.num_updates - config.warmup_updates)
    return config.min_lr_frac + (1 - config.min_lr_frac) * 0.5 * (1 + math.cos(math.pi * done))


def _accumulate(model: torch.nn.Module, batch: Sequence[Example], config: SftConfig) -> float:
    """The batch's weighted mean token loss; its gradient is left in the parameters."""
    total_weight = pad_examples(batch, config.prompt_loss_weight)[1][:, 1:].sum().item()
    device = next(model.parameters()).device
    total = 0.0
    for part in microbatches(batch, config.microbatch_tokens):
        input_ids_BL, weights_BL = (t.to(device) for t in pad_examples(part, config.prompt_loss_weight))
        # Right padding under a causal mask: no real token sees a pad, so no attention mask is needed.
        logits_BLV = model(input_ids=input_ids_BL, use_cache=False).logits
        nll = torch.nn.functional.cross_entropy(
            logits_BLV[:, :-1].flatten(0, 1).float(), input_ids_BL[:, 1:].flatten(), reduction="none"
        )
        loss = (nll * weights_BL[:, 1:].flatten()).sum() / total_weight
        loss.backward()
        total += loss.item()
    return total


def microbatches(batch: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """The batch by length, cut so that padded tokens stay within `max_tokens` (a longer example stands alone)."""
    parts: list[list[Example]] = []
    for example in sorted(batch, key=lambda e: len(e.token_ids)):
        if parts and (len(parts[-1]) + 1) * len(example.token_ids) <= max_tokens:
            parts[-1].append(example)
        else:
            parts.append([example])
    return parts


def pad_examples(examples: Sequence[Example], prompt_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their loss weights, both [B, L]; padding weighs 0."""
    width = max(len(example.token_ids) for example in examples)
    input_ids = torch.zeros(len(examples), width, dtype=torch.long)
    weights = torch.zeros(len(examples), width)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.token_ids, dtype=torch.long)
        input_ids[row, : len(ids)] = ids
        weights[row, : len(ids)] = prompt_weight
        weights[row, example.num_prompt_tokens : len(ids)] = 1.0
    return input_ids, weights


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
