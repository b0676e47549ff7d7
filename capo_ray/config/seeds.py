"""The seed of every draw of a run, from `run.seed` and the name of what is drawn.

With `stream.max_age=0`, where nothing depends on who ends first, a run draws the same responses again: on one machine
losses are equal to the last digit, as far as an engine's rounding does not depend on what else is in its batch.
"""

from __future__ import annotations

import hashlib

from capo_ray.config.train import TrainConfig

SEED_BITS = 30


def response_seed(config: TrainConfig, *names: object) -> int | None:
    """As `draw_seed`, for what is trained on; None where `engine.seeded=false` leaves it to the engine's own stream."""
    return draw_seed(config.run.seed, *names) if config.engine.seeded else None


def draw_seed(run_seed: int, *names: object) -> int:
    """The seed of the first sample of a request (0 to 2^30 - 1); its siblings' count up from it.

    A hash, so that the draws of two requests, or of two runs with neighbouring seeds, have nothing to do with each
    other.
    """
    told = "/".join(map(str, (run_seed, *names)))
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], "big") >> (32 - SEED_BITS)
