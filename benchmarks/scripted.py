"""A critic of set precision and recall against a known truth: for tests and benchmarks, where the point is elsewhere.

wrong step   flagged with probability recall
right step   flagged with probability recall · w/(1 − w) · (1 − precision)/precision,   w = share of wrong steps
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Collection

from capo_ray.config.sections import CriticConfig
from capo_ray.critics.guarded import StoreDoor
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
        if not (0 < precision <= 1 and 0 <= recall <= 1 and 0 <= wrong_frac < 1 and 0 <= invalid_frac <= 1):
            raise ValueError(
                f"expected 0 < precision <= 1, 0 <= recall, invalid_frac <= 1, 0 <= wrong_frac < 1 "
                f"(got {precision}, {recall}, {invalid_frac}, {wrong_frac})"
            )
        self._truth, self._recall, self._invalid_frac = truth, recall, invalid_frac
        self._false_alarm = min(1.0, recall * wrong_frac / (1 - wrong_frac) * (1 - precision) / precision)
        self._seconds, self._seed = seconds, seed
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
        share = {True: self._recall, False: self._false_alarm}
        flagged = [i for i in range(len(asking.steps)) if rng.random() < share[i in wrong]]
        word = "No" if flagged else "Yes"
        return seconds, f"Judgement: {word}\n<incorrect_steps>{','.join(map(str, flagged))}</incorrect_steps>"


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
