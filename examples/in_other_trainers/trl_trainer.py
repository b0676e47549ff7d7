"""TRL's GRPOTrainer with CAPO's advantages: a critic's flags lower the advantage of the steps that they are on.

TRL samples, keeps its own loss and optimizer, and takes advantages of shape (B, T) beside (B,).

    trainer = capo_trainer()(critic={"critic": "calculator"}, model=…, reward_funcs=…, args=…, train_dataset=…)

The data set has columns `prompt`, `question` and `answer`; what `reward_funcs` say is logged and not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from padded import advantages


def capo_trainer() -> type:
    """The trainer's class, made where TRL is imported."""
    import torch
    from trl import GRPOTrainer

    class CapoTrainer(GRPOTrainer):
        def __init__(self, *args: Any, critic: Mapping[str, Any] | None, method: str = "capo", **settings: Any) -> None:
            self.critic, self.method = critic, method
            super().__init__(*args, **settings)

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            batch = super()._generate_and_score_completions(inputs)
            ids, mask = batch["completion_ids"], batch["completion_mask"]
            size = self.num_generations
            if len(inputs) % size:
                raise ValueError(f"expected whole groups of {size} on each process, got {len(inputs)} rows")
            mine = advantages(
                self.processing_class,
                [row["question"] for row in inputs],
                [row["answer"] for row in inputs],
                ids.cpu().numpy(),
                mask.cpu().numpy(),
                list(np.arange(len(inputs)) // size),
                self.method,
                self.critic,
            )
            return batch | {"advantages": torch.as_tensor(mine, dtype=torch.float32, device=ids.device)}

    return CapoTrainer
