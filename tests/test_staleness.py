"""Age and length: the real pipeline over responses of log-normal length, on a simulated clock."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from capo_ray.config import TrainConfig
from capo_ray.flow import Pipeline
from capo_ray.flow.state import RunState
from capo_ray.protocols import Sampling, WeightsHandle
from capo_ray.types import Batch, Completion, UpdateReport, VersionRun, WeightedSample
from tests.clock import simulate
from tests.fakes import FakeEngine, FakeLearner, completion, fake_parts

MEDIAN_TOKENS, SIBLINGS, GROUPS = 20, 8, 8


class LongTailEngine(FakeEngine):
    """Responses of log-normal length, a token a second; each token is of the version held when it was sampled."""

    def __init__(self, sigma: float, seed: int) -> None:
        super().__init__(seed=seed)
        self.sigma = sigma
        self.swaps = [(0.0, 0)]
        self.lengths: dict[str, list[int]] = {}  # by problem

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        if sampling.n == 1:
            return await super().generate(prompt_ids, sampling)
        prompt = "".join(map(chr, prompt_ids)).strip()
        start = asyncio.get_running_loop().time()
        factors = [self.rng.lognormvariate(0.0, self.sigma) for _ in range(sampling.n)]
        lengths = [max(10, min(400, round(MEDIAN_TOKENS * factor))) for factor in factors]
        self.lengths["p" + prompt.removeprefix("digit ")] = lengths
        await asyncio.sleep(max(lengths))
        return tuple(self._response(prompt[-1], length, start) for length in lengths)

    async def load_weights(self, handle: WeightsHandle) -> int:
        self.swaps.append((asyncio.get_running_loop().time(), handle.version))
        return await super().load_weights(handle)

    def _response(self, answer: str, length: int, start: float) -> Completion:
        pick = answer if self.rng.random() < 0.5 else str((int(answer) + 1) % 10)
        whole = completion(f"{'.' * (length - 4)}\n\n{pick}")
        ends = [math.ceil(time - start) - 1 for time, _ in self.swaps[1:]] + [length]
        runs = [
            VersionRun(version, max(0, min(length, end))) for (_, version), end in zip(self.swaps, ends, strict=True)
        ]
        starts = [0, *(run.end for run in runs)]
        return replace(whole, versions=tuple(r for r, at in zip(runs, starts, strict=False) if r.end > at))


class SlowLearner(FakeLearner):
    """Keeps its batches, and takes `update_s`."""

    def __init__(self, update_s: float) -> None:
        super().__init__()
        self.update_s = update_s
        self.seen: list[tuple[int, list[WeightedSample]]] = []  # (version, samples)

    async def update(self, batch: Batch) -> UpdateReport:
        await asyncio.sleep(self.update_s)
        self.seen.append((self.version, [w for row in batch.grid for cell in row for w in cell]))
        return await super().update(batch)


@dataclass
class World:
    """A run that is over."""

    pipeline: Pipeline
    engine: LongTailEngine
    learner: SlowLearner

    @property
    def stale_problems(self) -> set[str]:
        """The problems of groups that were dropped as a whole."""
        db = self.pipeline.parts.ledger._db  # type: ignore[attr-defined]
        trained = {key.problem for batch in self.learner.batches for key in batch}
        stale = {p for (p,) in db.execute("SELECT problem FROM trajectories WHERE reason = 'stale'").fetchall()}
        return stale - trained

    def mean_length(self, problems: set[str]) -> float:
        return statistics.fmean(length for problem in problems for length in self.engine.lengths[problem])


def play(folder: Path, *, sigma: float = 0.8, max_age: int = 1, slots: int = 0, update_s: float = 6.0) -> World:
    """Thirty updates; a group takes about 70 s."""
    config = TrainConfig.model_validate(
        {
            "run": {"num_updates": 30, "eval_every": 0, "eval_problems": 1, "checkpoint_every": 1000},
            "credit": {"method": "grpo"},
            "rollout": {"group_size": SIBLINGS, "max_response_tokens": 400},
            "learner": {"groups_per_batch": GROUPS, "microbatch_tokens": 10_000},
            "stream": {"max_age": max_age, **({"slots": slots} if slots else {})},
        }
    )
    engine, learner = LongTailEngine(sigma, seed=max_age), SlowLearner(update_s)
    pipeline = Pipeline(fake_parts(folder, config, engine=engine, learner=learner, judge=None), RunState())
    simulate(pipeline.run())
    return World(pipeline, engine, learner)


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], World]:
    """The run of a max_age with everything else as usual, played once for all who look at it."""
    return cache(lambda max_age: play(tmp_path_factory.mktemp("aged"), max_age=max_age))


@pytest.mark.slow
@pytest.mark.parametrize(("sigma", "max_age", "update_s"), [(0.8, 1, 6.0), (0.8, 2, 6.0), (1.2, 1, 30.0)])
def test_groups_are_not_dropped_for_being_long(
    aged: Callable[[int], World], tmp_path: Path, sigma: float, max_age: int, update_s: float
) -> None:
    usual = (sigma, update_s) == (0.8, 6.0)
    world = aged(max_age) if usual else play(tmp_path, sigma=sigma, max_age=max_age, update_s=update_s)
    dropped = world.stale_problems
    trained = {key.problem for batch in world.learner.batches for key in batch}
    dropped_frac = len(dropped) / len(dropped | trained)
    ratio = world.mean_length(dropped) / world.mean_length(trained) if dropped else 1.0
    assert 0.95 <= ratio <= 1.05, f"{dropped_frac:.1%} of the groups were dropped, {ratio:.2f} times as long"
    assert dropped_frac < 0.01


@pytest.mark.slow
def test_every_token_young_enough_is_trained_and_no_other(aged: Callable[[int], World]) -> None:
    world = aged(1)
    num_trained, num_partly = 0, 0
    for version, batch in world.learner.seen:
        assert math.isclose(sum(sum(w.loss_weights) for w in batch), 1.0, rel_tol=1e-9)
        for weighted in batch:
            versions = [
                run.version
                for start, run in zip(
                    [0, *(r.end for r in weighted.sample.versions)], weighted.sample.versions, strict=False
                )
                for _ in range(start, run.end)
            ]
            weights = list(weighted.loss_weights)
            assert [w > 0 for w in weights] == [version - v <= 1 for v in versions]
            num_trained += sum(w > 0 for w in weights)
            num_partly += 0 < sum(w > 0 for w in weights) < len(weights)
    assert num_partly > 50, "the test sees responses that are masked in part"
    state, parts = world.pipeline.state, world.pipeline.parts
    in_batches = sum(
        sum(world.engine.lengths[p]) for p in {k.problem for batch in world.learner.batches for k in batch}
    )
    rows = [row for _, row in parts.tracker.rows if "stream/masked_frac" in row]  # type: ignore[attr-defined]
    assert state.num_masked_tokens == in_batches - num_trained
    assert max(row["stream/age_max"] for row in rows) == 1
    assert 0.1 < statistics.fmean(row["stream/masked_frac"] for row in rows) < 0.3
    version, batch = world.learner.seen[-1]
    lengths = [n for p in {k.problem for k in world.learner.batches[-1]} for n in world.engine.lengths[p]]
    shares = {w.sample.key: sum(x > 0 for x in w.loss_weights) / len(w.loss_weights) for w in batch}
    as_trained = sum(shares[w.sample.key] * len(w.loss_weights) for w in batch) / sum(shares.values())
    assert rows[version]["stream/trained_length_ratio"] == pytest.approx(as_trained / statistics.fmean(lengths))
    parts.ledger.close_open("run_ended")  # type: ignore[attr-defined]
    balance = parts.ledger.balance()  # type: ignore[attr-defined]
    assert balance.balanced and balance.counts["trained"] == state.num_trained == sum(map(len, world.learner.batches))
    assert (
        balance.masked_tokens == sum(len(w.sample.advantages) for _, b in world.learner.seen for w in b) - num_trained
    )
    assert balance.reasons["stale"] + balance.counts["trained"] == 30 * GROUPS * SIBLINGS


@pytest.mark.slow
def test_a_long_response_loses_about_as_much_of_its_weight_as_a_short_one(aged: Callable[[int], World]) -> None:
    world = aged(2)
    kept = {str(w.sample.key): sum(x > 0 for x in w.loss_weights) for _, batch in world.learner.seen for w in batch}
    problems = {key.problem: key for batch in world.learner.batches for key in batch}
    rows = sorted(
        (length, kept.get(f"{problem}/{key.group}/{sample}/{key.attempt}", 0))
        for problem, key in problems.items()
        for sample, length in enumerate(world.engine.lengths[problem])
    )
    fifths = [rows[i * len(rows) // 5 : (i + 1) * len(rows) // 5] for i in range(5)]
    shares = [statistics.fmean(n / length for length, n in fifth) for fifth in fifths]
    assert max(shares) < 1.08 * min(shares), f"{shares} of the responses' weight is trained, shortest first"


@pytest.mark.slow
def test_fewer_slots_keep_tokens_younger(aged: Callable[[int], World], tmp_path: Path) -> None:
    deep, shallow = aged(2), play(tmp_path, max_age=2, slots=2 * GROUPS)
    assert deep.pipeline.num_slots == 3 * GROUPS
    assert shallow.pipeline.state.num_masked_tokens < 0.5 * deep.pipeline.state.num_masked_tokens
