"""The canary: a text that engine and learner both score, and how far their logprobs may lie apart.

    version 0, one file on both sides: noise = |engine - learner|  ->  allowance = max(floor of the dtype, k * noise)
    every version after it:            |engine - learner| <= allowance, in the mean and at the worst token

The mean separates: kernels that round differently move every token a little (bf16: 0.03 nats in the mean, 0.5 at the
worst of 160 tokens), weights that are not the learner's move them by whole nats. What moves them less than rounding
does is caught by bytes, not by scores: on the way by `Manifest.fingerprint`, at the sender by checksums that are taken
of the model which scored the canary, and not of what was gathered to be sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


class WeightsRefused(RuntimeError):
    """Weights that are not what their manifest or the model says; serve nothing until good ones arrive."""


@dataclass(frozen=True, slots=True)
class Apart:
    """How far two scores of one text lie apart, in nats: |a - b| in the mean over tokens and at the worst of them."""

    mean: float
    worst: float

    def within(self, allowed: Apart) -> bool:
        """Whether neither is above its allowance; NaN is not."""
        return self.mean <= allowed.mean and self.worst <= allowed.worst

    def __str__(self) -> str:
        return f"{self.mean:.3g} nats in the mean and {self.worst:.3g} at the worst token"


START = {"float32": Apart(0.01, 0.1), "bfloat16": Apart(0.15, 2.0)}
"""What different kernels may make of the same file; measured on the shipped policy: 1e-6 and 0.03 in the mean."""
FLOOR = {"float32": Apart(2e-4, 1e-3), "bfloat16": Apart(0.04, 1.0)}
"""The least that is allowed, for a model whose noise happens to be small at version 0."""
MEAN_FACTOR = 3.0
"""The noise's mean varies by a fifth from version to version and grows slowly while a policy sharpens."""
WORST_FACTOR = 8.0
"""The worst token's varies by a factor of four."""

MOVED_FRAC = 0.1
"""Of the allowed mean: a learner that moved by more has moved an engine's scores in some bit too."""


def apart(one: Sequence[float], other: Sequence[float]) -> Apart:
    """How far two scores of the same tokens lie apart."""
    gaps = [abs(a - b) for a, b in zip(one, other, strict=True)]
    if not all(map(math.isfinite, gaps)):
        return Apart(math.inf, math.inf)
    return Apart(math.fsum(gaps) / len(gaps), max(gaps))


def allowance(dtype: str, noise: Apart) -> Apart:
    """How far engine and learner may lie apart at any version, from their noise at version 0."""
    floor = FLOOR[dtype]
    return Apart(max(floor.mean, MEAN_FACTOR * noise.mean), max(floor.worst, WORST_FACTOR * noise.worst))


@dataclass(frozen=True, slots=True)
class Canary:
    """A token sequence and the learner's own logprobs (nats, temperature 1) of its last `len(logprobs)` tokens.

    An engine holds the version only if its scores lie no further from them than `allowed`.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    allowed: Apart

    def __post_init__(self) -> None:
        if not 0 < len(self.logprobs) < len(self.token_ids):
            raise ValueError(
                f"a canary needs 1 to {len(self.token_ids) - 1} logprobs for its {len(self.token_ids)} tokens "
                f"(got {len(self.logprobs)}): the first token has no context to be scored in"
            )
        if not all(math.isfinite(x) for x in self.logprobs):
            raise ValueError("a canary's logprobs must be finite; a learner with other ones must not publish")
        if not (0 < self.allowed.mean < math.inf and 0 < self.allowed.worst < math.inf):
            raise ValueError(f"a canary must allow differences > 0 nats, and finite ones (got {self.allowed})")

    @property
    def start(self) -> int:
        """The index of the first scored token."""
        return len(self.token_ids) - len(self.logprobs)

    def judge(self, got: Sequence[float], version: int, before: Held | None = None) -> Held:
        """What the engine now holds, from its scores `got` of `version`; raises `WeightsRefused` where it is not that.

        `before` is what it held until now: scores equal to the last bit, where the learner's moved, are those of the
        old weights, however small the update was.
        """
        distance = apart(got, self.logprobs)
        if not distance.within(self.allowed):
            raise WeightsRefused(
                f"version {version}: the engine's logprobs of the canary differ from the learner's by {distance} "
                f"(allowed {self.allowed}); the weights did not arrive as they were sent"
            )
        held = Held(version, self.token_ids, tuple(got), self.logprobs)
        if (
            before is not None
            and before.version != version
            and before.token_ids == self.token_ids
            and before.engine == held.engine
            and apart(before.learner, held.learner).mean > MOVED_FRAC * self.allowed.mean
        ):
            raise WeightsRefused(
                f"version {version}: the engine scores the canary exactly as under version {before.version}, the "
                f"learner does not; the engine still computes with the old weights"
            )
        return held


@dataclass(frozen=True, slots=True)
class Held:
    """The last canary that an engine passed: its own scores and the learner's."""

    version: int
    token_ids: tuple[int, ...]
    engine: tuple[float, ...]
    learner: tuple[float, ...]
