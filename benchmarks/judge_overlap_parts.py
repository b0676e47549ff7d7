"""Stand-ins of `judge_overlap`: models that sleep for service times which depend on the problem alone."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.critics.panel import Asking, Panel, Reply
from capo_ray.protocols import JudgeRequest, Sampling
from capo_ray.types import Batch, Completion, Critique, Problem, UpdateReport, Verdict

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.fakes import FakeEngine, FakeLearner, FakeVerifier, completion

GROUPS, SIBLINGS, LANES, JUDGE_LANES = 8, 8, 8, 4


@dataclass(frozen=True)
class Trace:
    """Service times in seconds, each fixed by its problem."""

    sigma: float
    median_s: float
    judge_mean_s: float
    train_s: float
    publish_s: float = 0.005

    def generation_s(self, problem: str) -> float:
        """Of a group: its longest response."""
        rng = random.Random(f"generate/{problem}")
        return max(self.median_s * min(rng.lognormvariate(0.0, self.sigma), 20.0) for _ in range(SIBLINGS))

    def judge_s(self, problem: str, steps: tuple[str, ...]) -> float:
        """Of a response: its prefill and votes."""
        spread = 0.5
        return self.judge_mean_s * random.Random(f"judge/{problem}/{steps}").lognormvariate(-(spread**2) / 2, spread)


def make_trace(sigma: float, judge_s: float, step_s: float, train_share: float) -> Trace:
    """A trace in which a batch takes `step_s` to generate on all lanes and `judge_s` to judge on all of the judge's."""
    unit = Trace(sigma, 1.0, 0.0, 0.0)
    mean_group = statistics.fmean(unit.generation_s(f"p{i}") for i in range(4000))
    median_s = step_s * LANES / GROUPS / mean_group
    judge_mean_s = judge_s * JUDGE_LANES / (GROUPS * SIBLINGS)
    return Trace(sigma, median_s, judge_mean_s, train_share * step_s)


class LaneEngine(FakeEngine):
    """Generates a group per lane; what it writes depends on the problem alone."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace, self._lanes = trace, asyncio.Semaphore(LANES)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """The siblings, after the group's service time."""
        name = "".join(map(chr, prompt_ids)).strip()
        if sampling.n == 1:  # an evaluation
            return (completion("x", self.version),)
        async with self._lanes:
            version = self.version
            await asyncio.sleep(self._trace.generation_s(name))
        rng = random.Random(name)
        texts = [f"{rng.randrange(10)} {i}\n\n{'right' if rng.random() < 0.4 else 'wrong'}" for i in range(sampling.n)]
        return tuple(completion(text, version) for text in texts)


class WordVerifier(FakeVerifier):
    """Right is what says so."""

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        """At once."""
        return tuple(Verdict(int(r.endswith("right")), "compared", "1") for r in responses)


class LaneSource:
    """Votes of a judge with few lanes; a response holds one for its service time, and then has all its votes."""

    model = "simulated"

    def __init__(self, trace: Trace) -> None:
        self._trace, self._lanes = trace, asyncio.Semaphore(JUDGE_LANES)
        self.sampling: dict[str, object] = {}
        self.busy_s: dict[str, float] = defaultdict(float)

    async def votes(self, asking: Asking, num_votes: int, num_held: int, num_fresh: int) -> AsyncGenerator[Reply, None]:
        """The replies, all at the end."""
        seconds = self._trace.judge_s(asking.problem.prompt, asking.steps)
        async with self._lanes:
            if seconds:
                await asyncio.sleep(seconds)
        self.busy_s[asking.problem.id] += seconds
        rng = random.Random(f"{asking.problem.prompt}/{asking.steps}")
        for _ in range(num_votes):
            flagged = [str(i) for i in range(len(asking.steps)) if rng.random() < 0.3]
            word = "No" if flagged else "Yes"
            yield Reply(f"Judgement: {word}\n<incorrect_steps>{','.join(flagged)}</incorrect_steps>")


class BatchPhase:
    """A judge that waits for a whole batch of groups before it begins with any."""

    def __init__(self, judge: Panel) -> None:
        self._judge, self._waiting = judge, 0
        self._full = asyncio.Event()

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As the judge's, once the batch is full."""
        full = self._full
        self._waiting += 1
        if self._waiting == GROUPS:
            self._waiting, self._full = 0, asyncio.Event()
            full.set()
        await full.wait()
        return await self._judge.critique(problem, responses, num_votes)


class SleepingLearner(FakeLearner):
    """Takes its time."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    async def update(self, batch: Batch) -> UpdateReport:
        """After the service time."""
        await asyncio.sleep(self._trace.train_s)
        return await super().update(batch)

    async def publishable(self) -> Any:
        """After the publish's time."""
        await asyncio.sleep(self._trace.publish_s)
        return await super().publishable()
