"""A small reward model's group for tests: its groups, its spec, and what two real ranks do (see `rank_pair`)."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

from capo_ray.config.reward_model import RewardModelConfig
from capo_ray.config.sections import LearnerConfig
from capo_ray.learners import RewardLearner, RewardSpec
from capo_ray.learners.reward_batch import labelled_trajectories, to_batch, to_labels
from capo_ray.learners.reward_objectives import OBJECTIVES
from capo_ray.types import Completion, Group, Judged, Problem, Trajectory, TrajectoryKey, Verdict, VersionRun
from tests.learner_group import VOCAB, save
from tests.rank_pair import run_pair

REWARDS = (1, 0, 1, None)


def make_groups(seed: int, telling: bool = False, num_steps: int = 1) -> list[Group]:
    """Three groups of four, the last member invalid; `telling`: right answers are full of one token."""
    rng = random.Random(seed)

    def member(group: int, sample: int) -> Judged:
        length, reward = rng.randint(3, 20), REWARDS[sample]
        pool = [7 if reward else 9] if telling else range(3, VOCAB)
        ids = tuple(rng.choice(pool) for _ in range(length))
        logprobs = tuple(-4.2 + 0.1 * rng.gauss(0, 1) for _ in ids)
        completion = Completion(ids, logprobs, (1,) * length, "x", (VersionRun(0, length),), "stop")
        prompt = tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(2, 8)))
        trajectory = Trajectory(TrajectoryKey(f"p{group}", group, sample), prompt, completion)
        cuts = [*range(num_steps), length]
        return Judged(trajectory, Verdict(reward, ""), tuple(itertools.pairwise(cuts)))

    return [Group(g, Problem(f"p{g}", "", ""), tuple(member(g, s) for s in range(4))) for g in range(3)]


def make_reward_spec(
    model: str | Path,
    method: str,
    stage: int = 2,
    lr: float = 1e-3,
    reward_model: dict[str, object] | None = None,
    **changes: object,
) -> RewardSpec:
    return RewardSpec(
        model_path=str(model),
        reference_path=str(model),
        dtype="float32",
        method=method,
        learner=LearnerConfig(zero_stage=stage, deadline_s=60),  # type: ignore[arg-type]
        reward_model=RewardModelConfig.model_validate({"lr": lr, "num_epochs": 2, **(reward_model or {})}),
        kl_coef=0.01,
        trace_decay=0.9,
        temperature=0.9,
        device="cpu",
        **changes,  # type: ignore[arg-type]
    )


def train_on(
    learner: RewardLearner, groups: list[Group], *, num_ranks: int = 1, rank: int = 0, budget: int = 4096
) -> dict[str, float]:
    """The metrics of one update."""
    batch = to_batch(labelled_trajectories(groups), num_ranks=num_ranks, microbatch_tokens=budget)
    return learner.update(batch.column(rank), to_labels(groups)).metrics


def rewards_of(learner: RewardLearner, groups: list[Group]) -> list[tuple[float, ...]]:
    """Token rewards of all labelled responses, which every rank computes."""
    batch = to_batch(labelled_trajectories(groups), num_ranks=1, microbatch_tokens=4096)
    return [tuple(row.tolist()) for row in learner.token_rewards(batch.column(0))]


def run_rank(rank: int, world: int, meetings: Sequence[str], model: str, out: Path) -> None:
    """Trains each objective in turn under ZeRO-3, saves, and trains on before and after a load."""
    for meeting, method in zip(meetings, OBJECTIVES, strict=True):
        spec = make_reward_spec(model, method, 3, rank=rank, world_size=world, init_method=meeting)
        learner = RewardLearner(spec)
        metrics = [train_on(learner, make_groups(s), num_ranks=world, rank=rank, budget=200) for s in (1, 2)][-1]
        rewards = rewards_of(learner, make_groups(9))
        save(learner, out / method)
        after = train_on(learner, make_groups(3), num_ranks=world, rank=rank)
        assert learner.load(str(out / method)) == 2
        again = train_on(learner, make_groups(3), num_ranks=world, rank=rank)
        learner.close()
        if rank == 0:
            figures = {"metrics": metrics, "rewards": rewards, "after": after, "again": again}
            (out / f"{method}.json").write_text(json.dumps(figures))


def run_all_objectives(model: Path, out: Path) -> None:
    """Two processes that train together as `run_rank` says; their files are in `out`."""
    run_pair(run_rank, len(OBJECTIVES), model, out)
