"""One run of one arm: its held-out curves, what it computed, how good its critic was, and the credit's audit."""

from __future__ import annotations

import asyncio
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.config.credit.requests import TokenRewards
from capo_ray.config.seeds import draw_seed
from capo_ray.flow import GroupWay, Pipeline
from capo_ray.flow.state import RunState
from capo_ray.learners.reward_objectives import objective_of
from capo_ray.problems.chains import split_steps, true_wrong_steps
from capo_ray.protocols import Sampling
from plain_torch.arms import Arm
from plain_torch.engine import PlainEngine
from plain_torch.parts import build_parts, compose

KEPT = ("rollout/", "credit/", "critic/", "loss/", "learner/", "reward_model/")
"""Rooms whose figures are recorded."""


@dataclass(frozen=True)
class Settings:
    """What all arms of a comparison share; `overrides` are for all of them."""

    operations: int
    policy: str
    critic: str
    num_updates: int
    eval_every: int
    groups: int = 16
    group_size: int = 8
    num_epochs: int = 1
    eval_problems: int = 256
    pass_at: int = 1
    """Responses to each held-out problem before the first update and after the last."""
    overrides: tuple[str, ...] = ()

    def words(self, seed: int) -> list[str]:
        """As overrides of `capo-ray train`; the run's own evaluations and checkpoints are left to the benchmark."""
        return [
            f"model.path={self.policy}", f"run.seed={seed}", f"run.num_updates={self.num_updates}",
            "run.eval_every=0", "run.eval_problems=1", "run.checkpoint_every=1000000", "run.transcripts_every=1000000",
            "run.max_creditless_groups=1000000", f"rollout.max_response_tokens={6 * self.operations + 16}",
            f"rollout.group_size={self.group_size}", f"learner.groups_per_batch={self.groups}",
            f"learner.num_epochs={self.num_epochs}", "learner.schedule=constant", "loss.kl_coef=0", *self.overrides,
        ]  # fmt: skip


class Run:
    """An arm under training; it is the run's tracker, and evaluates whenever its engine holds new weights."""

    def __init__(self, arm: Arm, seed: int, settings: Settings, folder: Path) -> None:
        self.settings, self.seed = settings, seed
        self.config = compose(arm, settings.critic, settings.words(seed), settings.operations)
        self.parts, self.critic = build_parts(self.config, arm, settings.critic, folder, self)
        self.pipeline = Pipeline(self.parts, RunState())
        self.way = GroupWay(self.parts)
        assert isinstance(self.parts.engine, PlainEngine)
        self.engine = self.parts.engine
        self.engine.after_load = self.loaded
        self.curve: list[dict[str, Any]] = []
        self.figures: list[dict[str, float]] = []
        self.quality: list[dict[str, Any]] = [self.pipeline.state.critic.summary()]
        self.paused = [0.0, 0.0]

    async def go(self, before: dict[str, Any] | None = None) -> dict[str, Any]:
        """The record of the whole run; `before` is the first point of its curve where another arm has measured it."""
        self.started = time.process_time(), time.monotonic()
        if before is None:
            await self.evaluate(0)
        else:
            self.curve.append(before)
        await self.pipeline.run()
        return {"curve": self.curve, "figures": self.thirds()}

    async def loaded(self, version: int) -> None:
        """What the engine calls once it holds a version."""
        if version % self.settings.eval_every == 0 or version == self.settings.num_updates:
            await self.evaluate(version)

    async def evaluate(self, update: int) -> None:
        """Adds a point to the curve: held-out problems answered greedily and at temperature 1, alike in all arms."""
        spent = [now - start for now, start in zip((time.process_time(), time.monotonic()), self.started, strict=True)]
        cpu_s, wall_s = (s - p for s, p in zip(spent, self.paused, strict=True))
        tokens = self.engine.num_tokens
        at_ends = update in (0, self.settings.num_updates)
        sampled = await self._answer(1.0, self.settings.pass_at if at_ends else 1)
        greedy = await self._answer(0.0, 1)
        self.engine.num_tokens = tokens
        rights = [[right for right, _ in row] for row in sampled]
        point: dict[str, Any] = {
            "update": update,
            "accuracy": round(statistics.fmean(map(statistics.fmean, rights)), 4),
            "clean": round(statistics.fmean(clean for row in sampled for _, clean in row), 4),
            "greedy": round(statistics.fmean(right for row in greedy for right, _ in row), 4),
            "cpu_s": round(cpu_s, 2),
            "wall_s": round(wall_s, 2),
            **{name: round(value / 1e9, 1) for name, value in self.flops().items()},
        }
        if at_ends and self.settings.pass_at > 1:
            point["pass_at"] = {
                k: round(statistics.fmean(pass_at(k, row) for row in rights), 4)
                for k in (1, 4, 16, 64)
                if k <= self.settings.pass_at
            }
        self.curve.append(point)
        ended = [now - start for now, start in zip((time.process_time(), time.monotonic()), self.started, strict=True)]
        self.paused = [p + e - s for p, e, s in zip(self.paused, ended, spent, strict=True)]

    async def _answer(self, temperature: float, count: int) -> list[list[tuple[bool, bool]]]:
        """For each held-out problem whether each response is right, and whether it is so without a wrong step."""
        rollout, problems = self.config.rollout, self.parts.problems.held_out(self.settings.eval_problems)

        async def answer(problem: Any) -> list[tuple[bool, bool]]:
            seed = draw_seed(self.seed, "held out", problem.id)
            sampling = Sampling(temperature, max_tokens=rollout.max_response_tokens, n=count, seed=seed)
            completions = await self.engine.generate(self.way.encode_prompt(problem), sampling)
            texts = [completion.text for completion in completions]
            verdicts = await self.parts.verifier.verify(problem.answer, texts)
            rights = [verdict.reward == 1 for verdict in verdicts]
            return [
                (r, r and not true_wrong_steps(problem, split_steps(t))) for r, t in zip(rights, texts, strict=True)
            ]

        return await asyncio.gather(*map(answer, problems))

    def log(self, metrics: dict[str, float], *, update: int) -> None:
        """As `Tracker.log`: the figures of an update, those of the pipeline's own evaluations left out."""
        if "time/update_s" in metrics:
            self.figures.append({name: x for name, x in metrics.items() if name.startswith(KEPT)})
            self.quality.append(self.pipeline.state.critic.summary())

    def write_group(self, *arguments: Any) -> None:
        """Nothing: nobody reads transcripts of an arm."""

    def update(self, **figures: Any) -> None:
        """As `Progress.update`: shown to nobody."""

    def flops(self) -> dict[str, float]:
        """Work so far by 2 parameters tokens forward and 6 for training; a prompt counts once for its continuations."""
        parameters = self.engine.model.num_parameters
        passes = 6.0 * self.config.learner.num_epochs + 2.0 * bool(self.config.loss.kl_coef)
        work = {
            "sampling": 2.0 * parameters * self.engine.num_tokens,
            "training": passes * parameters * self.parts.learner.num_tokens,  # type: ignore[attr-defined]
            "critic": 2.0 * self.critic.model.num_parameters * self.critic.num_tokens if self.critic else 0.0,
        }
        if self.parts.reward_model is not None:
            settings = self.config.reward_model
            asked = self.config.credit.asked(TokenRewards)
            assert asked is not None
            objective = objective_of(asked.objective, settings)
            reads_reference = objective.baseline == "reference" or objective.loss is None
            # A pass is phi forward, forward again and backward; then the rewards; the reference is read for each.
            passes = 2.0 * (4 * settings.num_epochs + 1 + reads_reference)
            work["reward_model"] = passes * parameters * self.parts.reward_model.num_tokens  # type: ignore[attr-defined]
        return {f"gflop_{name}": value for name, value in work.items() if value}

    def thirds(self) -> list[dict[str, float]]:
        """Means of each figure over the first, second and last third of the updates, undefined values left out."""
        size = -(-len(self.figures) // 3)
        return [
            means(self.figures[at : at + size]) | quality(self.quality[at], self.quality[at : at + size + 1][-1])
            for at in range(0, len(self.figures), size)
        ]


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure where it is defined."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, x in row.items():
            values.setdefault(name, []).extend([x] if math.isfinite(x) else [])
    return {name: round(statistics.fmean(found), 4) for name, found in sorted(values.items()) if found}


def quality(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Step precision and recall of single critiques and of the vote between two moments of a run's critic."""
    figures = {}
    for kind, name in (("single", "critic"), ("voted", "vote")):
        hits, false, missed = (after[f"{kind}_{x}"] - before[f"{kind}_{x}"] for x in ("hits", "false", "missed"))
        if hits + false:
            figures[f"{name}/precision"] = round(hits / (hits + false), 4)
        if hits + missed:
            figures[f"{name}/recall"] = round(hits / (hits + missed), 4)
    return figures


def pass_at(k: int, rights: Sequence[bool]) -> float:
    """The chance that one of `k` responses is right, estimated from as many or more (arXiv 2107.03374, eq. 1)."""
    return 1.0 - math.comb(len(rights) - sum(rights), k) / math.comb(len(rights), k)


def record(arm: Arm, seed: int, settings: Settings, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """A finished run with its name; `before` as in `Run.go`."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(arm, seed, settings, Path(folder))
        return {"operations": settings.operations, "arm": arm.name, "seed": seed, **asyncio.run(run.go(before))}
