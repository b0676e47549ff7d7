"""Supervised fine-tuning: examples as samples whose tokens are imitated, trained by the same `Learner` as RL.

Loss of an update = weighted sum of -log pi over its tokens / sum of the weights in the whole batch. A completion token
weighs 1, a prompt token `prompt_loss_weight` (0 by default). An advantage of 0 and an imitation weight leave nothing
else of the policy loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from capo_ray.arrays import Runs
from capo_ray.config.loss import LossConfig
from capo_ray.config.sft import SftConfig
from capo_ray.learners.learner import Learner
from capo_ray.learners.spec import LearnerSpec
from capo_ray.packing import build_batch
from capo_ray.protocols import RunFailed
from capo_ray.types import Batch, Sample, TrajectoryKey, VersionRun


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and completion (end-of-sequence included), the first `num_prompt_tokens` being the prompt."""

    token_ids: tuple[int, ...]
    num_prompt_tokens: int


def build_learner(config: SftConfig, model_path: str) -> Learner:
    """The learner of the model at `model_path`, in this process."""
    return Learner(
        LearnerSpec(
            model_path=model_path,
            dtype=config.model.dtype,
            learner=config.learner.to_learner(),
            loss=LossConfig(behaviour="recompute", kl_coef=0.0, aggregation="token_mean"),
            temperature=1.0,
            total_updates=config.num_updates,
            seed=config.seed,
            device=config.device,
        )
    )


def supervised_updates(learner: Learner, examples: Iterator[Example], config: SftConfig) -> Iterator[float]:
    """Train one update per item asked for; yields its mean token loss (nats), at most `num_updates` times.

    Raises RunFailed on a loss that is not finite, and where the examples run out.
    """
    for update in range(config.num_updates):
        taken = list(islice(examples, config.batch_size))
        if len(taken) < config.batch_size:
            raise RunFailed(f"expected {config.batch_size} examples for update {update}, got {len(taken)}: give more")
        report = learner.update(imitation_batch(taken, config, update).column(0))
        if report.skipped:
            raise RunFailed(
                f"loss or gradient of update {update} is not finite: lower learner.lr ({config.learner.lr:g})"
            )
        yield report.metrics["loss/objective_mean"]


def imitation_batch(examples: Sequence[Example], config: SftConfig, update: int) -> Batch:
    """The examples as one batch of samples, each trained from the first token that weighs anything."""
    starts = [1 if config.prompt_loss_weight else example.num_prompt_tokens for example in examples]
    prompts = [example.num_prompt_tokens - start for example, start in zip(examples, starts, strict=True)]
    totals = [len(example.token_ids) - start for example, start in zip(examples, starts, strict=True)]
    weight = config.prompt_loss_weight * sum(prompts) + sum(totals) - sum(prompts)
    scale = sum(totals) / weight  # packing divides by the number of tokens, not by their weights
    samples = [
        Sample(
            key=TrajectoryKey("example", update, index),
            token_ids=np.array(example.token_ids, np.int32),
            sampler_logprobs=np.zeros(total, np.float32),
            advantages=Runs.constant(0.0, total),
            versions=(VersionRun(update, total),),
            imitation_weights=Runs.of([config.prompt_loss_weight * scale] * prompt + [scale] * (total - prompt)),
        )
        for index, (example, prompt, total) in enumerate(zip(examples, prompts, totals, strict=True))
    ]
    return build_batch(
        samples, num_ranks=1, microbatch_tokens=config.learner.microbatch_tokens, aggregation="token_mean"
    )


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
