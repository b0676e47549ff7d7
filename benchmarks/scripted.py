"""The oracle (`capo_ray.critics.oracle`) for tests and benchmarks: with a seed, late votes and unreadable ones."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Collection

from capo_ray.config.sections import CriticConfig
from capo_ray.critics.guarded import StoreDoor
from capo_ray.critics.oracle import noisy_vote
from capo_ray.critics.panel import Asking, Panel, Reply
from capo_ray.critics.store import CritiqueStore
from capo_ray.types import Problem

Truth = Callable[[Problem, tuple[str, ...]], Collection[int]]


class ScriptedSource:
    """Votes drawn at random around the truth; each depends only on the seed, the request and the vote's index."""

    def __init__(
        self,
        truth: Truth,
        *,
        precision: float = 1.0,
        recall: float = 1.0,
        wrong_frac: float = 0.3,
        invalid_frac: float = 0.0,
        seconds: Callable[[random.Random], float] | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= invalid_frac <= 1:
            raise ValueError(f"expected 0 <= invalid_frac <= 1 (got {invalid_frac})")
        rates = CriticConfig(
            backend="oracle", oracle_precision=precision, oracle_recall=recall, oracle_wrong_frac=wrong_frac
        )
        self._truth, self._recall, self._false_alarm = truth, recall, rates.oracle_false_alarm
        self._invalid_frac, self._seconds, self._seed = invalid_frac, seconds, seed
        self.model = "scripted"
        self.sampling: dict[str, object] = {
            "precision": precision, "recall": recall, "wrong_frac": wrong_frac, "invalid": invalid_frac, "seed": seed,
        }  # fmt: skip

    async def votes(self, asking: Asking, num_votes: int, num_held: int, num_fresh: int) -> AsyncGenerator[Reply, None]:
        """The replies, the quickest first."""
        wrong = set(self._truth(asking.problem, asking.steps))
        drawn = [self._draw(asking, wrong, num_held + num_fresh + i) for i in range(num_votes)]
        waited = 0.0
        for seconds, text in sorted(drawn, key=lambda d: d[0]):
            if seconds > waited:
                await asyncio.sleep(seconds - waited)
                waited = seconds
            yield Reply(text, output_tokens=len(text) // 4)

    def _draw(self, asking: Asking, wrong: set[int], index: int) -> tuple[float, str]:
        rng = random.Random(f"{self._seed}/{asking.key}/{index}")
        seconds = self._seconds(rng) if self._seconds else 0.0
        if rng.random() < self._invalid_frac:
            return seconds, f"vote {index} cannot be read"
        return seconds, noisy_vote(rng, len(asking.steps), wrong, self._recall, self._false_alarm)


class ScriptedJudge(Panel):
    """`protocols.Judge` over a script."""

    def __init__(
        self,
        source: ScriptedSource,
        config: CriticConfig,
        *,
        vote: str = "majority",
        quorum: int = 1,
        store: CritiqueStore | StoreDoor | None = None,
    ) -> None:
        super().__init__(source, config, vote=vote, quorum=quorum, store=store)
