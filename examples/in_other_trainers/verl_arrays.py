"""CAPO's advantages on the arrays of verl: what stands in `DataProto.batch` and `.non_tensor_batch` after rewards.

verl's trainer calls `compute_advantage(data, …)` between the reward and the update; a trainer of one's own calls this
in its place:

    data.batch["advantages"], data.batch["returns"] = capo_advantages(data.batch, data.non_tensor_batch, tokenizer)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from padded import advantages


def capo_advantages(
    batch: Mapping[str, Any],
    non_tensor_batch: Mapping[str, Any],
    tokenizer: Any,
    method: str = "capo",
    critic: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """(advantages, returns), both [B, T] and, as in verl's own GRPO, the same; of the kind that `response_mask` is.

    Read are responses, response_mask [B, T]; uid [B], reward_model [B] with ground_truth, extra_info [B] with question.
    """
    responses, mask = (np.asarray(batch[name]) for name in ("responses", "response_mask"))
    mine = advantages(
        tokenizer,
        [str(info["question"]) for info in non_tensor_batch["extra_info"]],
        [str(truth["ground_truth"]) for truth in non_tensor_batch["reward_model"]],
        responses,
        mask,
        list(non_tensor_batch["uid"]),
        method,
        critic,
    )
    like = batch["response_mask"]
    result = mine if isinstance(like, np.ndarray) else like.float().new_tensor(mine)
    return result, result
