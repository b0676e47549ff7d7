"""TRL's own trainer as an arm of the learner's benchmark: its loss on its padded rows, its head, one move of AdamW.

Rows of one microbatch are padded as TRL pads them: prompts on the left, responses on the right. Where TRL is not
installed there is no such arm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from learner_parts import Group
from tiny import write_tokenizer


def is_here() -> bool:
    """Whether TRL can be imported."""
    return all(find_spec(name) is not None for name in ("trl", "datasets", "accelerate"))


def trl_backward(
    path: Path, groups: Sequence[Group], advantages: Sequence[float], rows: int
) -> tuple[Any, Callable[[], None]]:
    """TRL's model, and what leaves in it the gradient that the other arms have, `rows` responses at a time."""
    batches = list(_batches(groups, advantages, rows))
    trainer = _trainer(path, rows, len(batches), max(len(r) for _, responses in groups for r in responses))
    trainer.current_gradient_accumulation_steps = len(batches)

    def backward() -> None:
        for batch in batches:
            trainer.compute_loss(trainer.model, dict(batch)).backward()

    return trainer.model, backward


def _trainer(path: Path, rows: int, steps: int, longest: int) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    write_tokenizer(path)
    args = GRPOConfig(
        output_dir=str(path / "trl"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=steps,
        num_generations=rows,
        max_completion_length=longest,
        gradient_checkpointing=False,
        loss_type="dapo",  # a mean over the tokens of the whole batch, as the other arms have it
        beta=0.0,
    )
    data = Dataset.from_list([{"prompt": "a"}] * rows)
    trainer = GRPOTrainer(model=str(path), reward_funcs=lambda **_: [0.0] * rows, args=args, train_dataset=data)
    trainer.model.train()
    return trainer


def _batches(groups: Sequence[Group], advantages: Sequence[float], rows: int) -> Any:
    """TRL's inputs, a microbatch at a time."""
    flat = [(prompt, response) for prompt, responses in groups for response in responses]
    count = torch.tensor(float(sum(len(response) for _, response in flat)))
    for at in range(0, len(flat), rows):
        part = flat[at : at + rows]
        before, after = (max(len(pair[side]) for pair in part) for side in (0, 1))
        prompts, responses = torch.zeros(len(part), before, dtype=torch.long), torch.zeros(len(part), after).long()
        masks = torch.zeros_like(prompts), torch.zeros_like(responses)
        for i, (prompt, response) in enumerate(part):
            prompts[i, before - len(prompt) :], masks[0][i, before - len(prompt) :] = torch.tensor(prompt), 1
            responses[i, : len(response)], masks[1][i, : len(response)] = torch.tensor(response), 1
        yield {
            "prompt_ids": prompts,
            "prompt_mask": masks[0],
            "completion_ids": responses,
            "completion_mask": masks[1],
            "advantages": torch.tensor(advantages[at : at + rows]),
            "num_items_in_batch": count,
        }
