"""A run's directory made by the very writers of a run, with texts that a page must not believe."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from capo_ray.checkpoint import write_settings
from capo_ray.config import TrainConfig
from capo_ray.credit import assign_credit
from capo_ray.ledger import SqliteLedger
from capo_ray.metrics import JsonlTracker, TranscriptWriter, write_summary
from capo_ray.types import (
    Completion,
    Critique,
    Evidence,
    Group,
    Judged,
    Problem,
    Provenance,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
    Watched,
)
from capo_ray.work import Work

HOSTILE = "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script>\u202e\u0007"


def one_group(number: int, words: str = "", size: int = 4) -> Group:
    """A group of three steps of two tokens each: the last sibling is wrong, the second step of it flagged by 2 of 3."""

    def member(sample: int) -> Judged:
        parts = ["1+1", "=2\n", "2+2", "=5\n", f"so {number} ", words or "done"]
        text = "".join(parts)
        ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
        completion = Completion(range(6), [-0.1 * i for i in range(6)], ends, text, (VersionRun(number, 6),), "stop")
        wrong = sample == size - 1
        votes = tuple(
            Critique(
                frozenset({1} if wrong and i else ()),
                not (wrong and i),
                f"{words} vote {i}",
                "",
                Provenance("c", "", i),
            )
            for i in range(3)
        )
        key = TrajectoryKey(f"p{number}", number, sample)
        verdict = Verdict(int(not wrong), "", "2" if not wrong else None)
        return Judged(Trajectory(key, (1, 2), completion), verdict, ((0, 2), (2, 4), (4, 6)), Evidence(critiques=votes))

    return Group(number, Problem(f"p{number}", f"{words} question {number}", "2"), tuple(map(member, range(size))))


WAITED = {"rollout/idle_frac": 0.1, "critic/idle_frac": 0.5, "verifier/idle_frac": 0.9, "learner/idle_frac": 0.2} | {
    "queue/in_flight_groups": 8.0, "queue/finished_groups": 2.0, "critic/waiting_requests": 3.0
}  # fmt: skip


def learner_words(group: Group) -> Watched:
    """The learner's logprobs: those of the engine, but 0.5 nats less for the second step; entropies of 1 nat."""
    apart = np.array([0, 0, -0.5, -0.5, 0, 0], np.float32)
    told = {m.trajectory.key: m.trajectory.response.logprobs + apart for m in group.members}
    return {key: {"policy_logprobs": row, "policy_entropies": np.ones(6)} for key, row in told.items()}


def works_of(group: int, at: float) -> list[Work]:
    """A second of two engines, one verifier, one critic and one rank; the learner has it a tenth of a second later."""
    way = (("rollout", group % 2, 0, 0.5), ("verifier", 0, 0.5, 0.6), ("critic", 0, 0.6, 0.9), ("learner", 0, 1, 1.2))
    works = [Work(tier, actor, at + group + a, at + group + b, group) for tier, actor, a, b in way]
    return [*works, Work("rollout", 1, at + group + 1.2, at + group + 1.3, errand="publish")]


def make_run(path: Path, *, updates: int = 6, words: str = HOSTILE, **credit: Any) -> Path:
    """The directory of an ended run of CAPO that kept one group of each update."""
    config = TrainConfig.model_validate({"credit": {"method": "capo", **credit}, "run": {"num_updates": updates}})
    path.mkdir(parents=True)
    write_settings(path / "config.yaml", config.model_dump(mode="json"))
    tracker, transcripts = JsonlTracker(path / "metrics.jsonl"), TranscriptWriter(path / "transcripts.jsonl")
    ledger = SqliteLedger(path / "ledger.sqlite", path.name)
    tracker.log({"eval/accuracy_frac": 0.25}, update=0)
    began = time.time()
    for update in range(1, updates + 1):
        group = one_group(update, words)
        keys = [member.trajectory.key for member in group.members]
        for state in ("generated", "verified", "critiqued", "credited"):
            ledger.record(keys, state)
        ledger.record(keys, "trained", update=update)
        ledger.note(works_of(update, began - 20))
        credit = assign_credit(group, config.credit, (update - 1) / updates)
        transcripts.write_group(update, group, credit, learner_words(group))
        tracker.log({"rollout/reward_mean": update / 10, "critic/agreement_frac": 0.9, **WAITED}, update=update)
    tracker.log(
        {"eval/accuracy_frac": 0.75, "eval/accuracy_low_frac": 0.7, "eval/accuracy_high_frac": 0.8}, update=updates
    )
    tracker.close()
    ledger.close()
    write_summary(
        path / "summary.json", {"wall_s": 12.0, "stopped_early": "", "critiques": 72, "critic": {"recall": 0.5}}
    )
    return path
