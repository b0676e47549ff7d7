"""One run of one arm: its held-out curve, what it computed, how good its critic was, and the credit's audit."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from capo_ray.cli.compose import compose_train
from capo_ray.credit import assign_credit, audit
from capo_ray.critics.quality import step_quality
from capo_ray.problems.chains import make_problem
from capo_ray.types import Group, GroupCredit
from plain_torch.arms import ARMS, Parts
from plain_torch.learner import Learner
from plain_torch.model import Model
from plain_torch.reward_model import RewardModel
from plain_torch.world import Actor, Critic, draw_problems, truth_of


@dataclass(frozen=True)
class Settings:
    """What all arms of a comparison share."""

    operations: int
    policy: str
    critic: str
    num_updates: int
    eval_every: int
    groups: int = 8
    group_size: int = 8
    num_epochs: int = 4
    lr: float = 1e-4
    eval_problems: int = 256


class Run:
    """An arm under training."""

    def __init__(self, arm: str, seed: int, settings: Settings) -> None:
        self.arm, self.seed, self.settings = ARMS[arm], seed, settings
        model = Model(settings.policy)
        self.learner = Learner(model, settings.lr, settings.num_epochs)
        phi = None
        if "phi" in self.arm.uses:
            method = self.arm.method
            config = compose_train([f"credit={method}"]).reward_model
            if method == "prime":  # at the policy's rate
                config = config.model_copy(update={"lr": settings.lr})
            phi = RewardModel(method, Model(settings.policy), Model(settings.policy), config)
        critic = Critic(Model(settings.critic)) if "critic" in self.arm.uses else None
        self.parts = Parts(
            Actor(model), critic, phi, torch.Generator().manual_seed(seed), random.Random(f"{arm}/{seed}")
        )
        self.held_out = [
            make_problem(0, index, settings.operations, "held_out") for index in range(settings.eval_problems)
        ]
        self.cpu_s = self.wall_s = 0.0
        self.curve: list[dict[str, float]] = []
        self.figures: list[dict[str, float]] = []

    def go(self) -> dict[str, Any]:
        """The record of the whole run."""
        self.evaluate(0)
        for update in range(1, self.settings.num_updates + 1):
            cpu, wall = time.process_time(), time.monotonic()
            self.update(update)
            self.cpu_s += time.process_time() - cpu
            self.wall_s += time.monotonic() - wall
            if update % self.settings.eval_every == 0 or update == self.settings.num_updates:
                self.evaluate(update)
        return {"curve": self.curve, "figures": thirds(self.figures)}

    def update(self, update: int) -> None:
        """Roll out, gather evidence, credit, train."""
        settings = self.settings
        problems = draw_problems(self.seed, (update - 1) * settings.groups, settings.groups, settings.operations)
        groups = self.parts.actor.roll_out(problems, settings.group_size, self.parts.generator)
        judged = self.arm.gather(self.parts, groups)
        config, progress = self.arm.config, (update - 1) / settings.num_updates
        credits = [assign_credit(group, config, progress) for group in judged]
        clipped = self.learner.update(judged, credits)
        self.figures.append({"loss/clipped_frac": clipped, **figures_of(judged, credits)})

    @torch.no_grad()
    def evaluate(self, update: int) -> None:
        """Adds a point to the curve: sampled accuracy on held-out problems, the same problems and seed for all."""
        spent = self.parts.actor.tokens
        generator = torch.Generator().manual_seed(1000 + self.seed)
        groups = self.parts.actor.roll_out(self.held_out, 1, generator)
        self.parts.actor.tokens = spent
        right = [group.members[0].verdict.reward == 1 for group in groups]
        clean = [ok and not truth_of(group)[0] for ok, group in zip(right, groups, strict=True)]
        self.curve.append(
            {
                "update": update,
                "accuracy": round(statistics.fmean(right), 4),
                "clean": round(statistics.fmean(clean), 4),
                "cpu_s": round(self.cpu_s, 2),
                "wall_s": round(self.wall_s, 2),
                **{name: round(value / 1e9, 1) for name, value in self.flops().items()},
            }
        )

    def flops(self) -> dict[str, float]:
        """Work so far by 2 parameters tokens forward and 6 for training; a prompt counts once for its continuations."""
        actor, critic, phi = self.parts.actor, self.parts.critic, self.parts.reward_model
        policy_parameters = actor.model.num_parameters
        work = {
            "sampling": 2.0 * policy_parameters * actor.tokens,
            "training": 6.0 * policy_parameters * self.learner.tokens,
            "critic": 2.0 * critic.model.num_parameters * critic.tokens if critic else 0.0,
            # A pass is phi forward, forward again and backward; then the rewards; the reference is read for each.
            "reward_model": phi.work_per_token * phi.tokens if phi else 0.0,
        }
        return {f"gflop_{name}": value for name, value in work.items() if value}


def figures_of(groups: Sequence[Group], credits: Sequence[GroupCredit]) -> dict[str, float]:
    """Reward, critic quality against the truth and the audit of one update, means over its groups."""
    seen: defaultdict[str, list[float]] = defaultdict(list)
    for group, credit in zip(groups, credits, strict=True):
        for name, value in audit(group, credit).items():
            seen[name].append(value)
        seen["reward_mean"] += [float(member.verdict.reward or 0) for member in group.members]
    figures = {name: statistics.fmean(values) for name, values in seen.items()}
    return figures | critic_quality(groups, credits)


def critic_quality(groups: Sequence[Group], credits: Sequence[GroupCredit]) -> dict[str, float]:
    """Step precision and recall of single critiques and of the vote, and the share of steps that are really wrong."""
    truth = [wrong for group in groups for wrong in truth_of(group)]
    members = [member for group in groups for member in group.members]
    counts = [len(member.steps) for member in members]
    if not any(member.evidence.critiques for member in members):
        return {}
    voted = [frozenset(s for s, w in enumerate(row) if w >= 0.5) for credit in credits for row in credit.step_weights]
    singles = [
        (critique.flagged, wrong, count)
        for member, wrong, count in zip(members, truth, counts, strict=True)
        for critique in member.evidence.critiques
        if critique.flagged is not None
    ]
    single, vote = step_quality(*map(list, zip(*singles, strict=True))), step_quality(voted, truth, counts)
    return {
        "critic/precision": single.precision,
        "critic/recall": single.recall,
        "vote/precision": vote.precision,
        "vote/recall": vote.recall,
        "wrong_steps_frac": sum(map(len, truth)) / sum(counts),
    }


def thirds(rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Means of each figure over the first, second and last third of the updates, undefined values left out."""
    size = -(-len(rows) // 3)
    means = []
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        names = sorted({name for row in part for name in row})
        values = {name: [row[name] for row in part if row.get(name, float("nan")) == row.get(name)] for name in names}
        means.append({name: round(statistics.fmean(v), 4) for name, v in values.items() if v})
    return means


def record(arm: str, seed: int, settings: Settings) -> dict[str, Any]:
    """A finished run with its name and settings."""
    return {
        "operations": settings.operations,
        "arm": arm,
        "seed": seed,
        **Run(arm, seed, settings).go(),
        "settings": asdict(settings),
    }
