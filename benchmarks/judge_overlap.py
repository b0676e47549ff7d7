r"""B6: how much of the judge's time a step sees, (step with judge - step without) / judge time, against a batch phase.

    python benchmarks/judge_overlap.py [--repeats 5] [--updates 24] [--sigma 0.8] [--utilisation 0.85] [--max-age 2 3]

The real pipeline, slot buffer, ledger (SQLite on disk) and critic tier's front (`Panel`: k=4 votes, parser, vote); the
models are stand-ins that sleep: log-normal generation (a group of 8 takes as long as its longest response, capped at
20 medians) on 8 lanes, a judge that serves one response at a time per lane, a learner, a publish. Service times depend
on the problem alone, so every arm meets the same ones. Generation is the bottleneck. The judge's service time is set so
that judging a batch takes --utilisation of the step that a first run of `alone` shows.
Arms, interleaved in each repeat:
    alone          streaming, no judge time
    streaming      streaming, every group judged as soon as it is verified
    batch_phase    the same slots, but a batch is judged as a whole once all of its groups are there
    sync_alone     one batch at a time (max_age 0), no judge time
    sync_phase     one batch at a time: generate, then judge the batch, then train
Judge time of a step: the seconds of judge service that its trained groups need, over the judge's lanes. Fails when an
arm gives a group other credit than another arm, loses a trajectory or trains one twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capo_ray.config import TrainConfig
from capo_ray.critics.panel import Panel
from capo_ray.flow import Pipeline
from capo_ray.flow.group import CreditedGroup
from capo_ray.flow.state import RunState
from capo_ray.types import Watched

sys.path.insert(0, str(Path(__file__).parent))
from judge_overlap_parts import (
    GROUPS,
    JUDGE_LANES,
    SIBLINGS,
    BatchPhase,
    LaneEngine,
    LaneSource,
    SleepingLearner,
    Trace,
    WordVerifier,
    make_trace,
)
from records import record

from tests.fakes import fake_parts

RESULTS = record("judge_overlap.json")
GOAL = 0.05
VOTES, WARM_UP = 4, 4
Credit = tuple[tuple[float, ...], ...]


class Watch(Pipeline):
    """The pipeline, remembering when each update ended and which credit each group had."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ends: list[float] = []
        self.trained: list[list[str]] = []
        self.credit: dict[str, Credit] = {}

    async def _after_update(self, groups: Sequence[CreditedGroup], figures: dict[str, float], watched: Watched) -> None:
        self.ends.append(time.perf_counter())
        self.trained.append([g.group.problem.id for g in groups])
        self.credit |= {g.group.problem.id: tuple(map(tuple, g.credit.advantages)) for g in groups}
        await super()._after_update(groups, figures, watched)


@dataclass
class Outcome:
    """One arm of one repeat."""

    step_s: float
    judge_s: float
    utilisation: float
    ages: dict[int, int]
    credit: dict[str, Credit] = field(repr=False)


def run_arm(arm: str, trace: Trace, updates: int, max_age: int, folder: Path) -> Outcome:
    """The figures of one arm; raises `SystemExit` where a trajectory was lost or trained twice."""
    sync = arm.startswith("sync")
    idle = arm.endswith("alone")
    config = TrainConfig.model_validate(
        {
            "run": {"num_updates": updates, "eval_every": 0, "eval_problems": 1, "checkpoint_every": 10_000},
            "credit": {"method": "capo"},
            "critic": {"num_votes": VOTES, "early_stop": False},
            "rollout": {"group_size": SIBLINGS},
            "learner": {"groups_per_batch": GROUPS},
            "stream": {"max_age": 0 if sync else max_age},
        }
    )

    async def go() -> tuple[Watch, LaneSource]:
        source = LaneSource(Trace(**{**vars(trace), "judge_mean_s": 0.0}) if idle else trace)
        judge: Any = Panel(source, config.critic, vote="majority", quorum=1)
        if arm.endswith("phase"):
            judge = BatchPhase(judge)
        parts = fake_parts(
            folder, config,
            engine=LaneEngine(trace), verifier=WordVerifier(), judge=judge, learner=SleepingLearner(trace),
        )  # fmt: skip
        watch = Watch(parts, RunState())
        await watch.run()
        return watch, source

    watch, source = asyncio.run(go())
    parts: Any = watch.parts
    parts.ledger.close_open("run_ended")
    balance = parts.ledger.balance()
    if not balance.balanced or balance.counts["trained"] != updates * GROUPS * SIBLINGS or parts.ledger.trained_twice():
        raise SystemExit(f"{arm}: the ledger does not balance: {balance}")
    parts.ledger.close()
    wall = watch.ends[-1] - watch.ends[WARM_UP - 1]
    problems = [p for batch in watch.trained[WARM_UP:] for p in batch]
    judge_s = sum(source.busy_s[p] for p in problems) / JUDGE_LANES / (updates - WARM_UP)
    step_s = wall / (updates - WARM_UP)
    return Outcome(step_s, judge_s, judge_s / step_s, dict(sorted(Counter(parts.learner.ages).items())), watch.credit)


def must_agree(outcomes: dict[str, Outcome]) -> int:
    """How many groups had credit in several arms; ends the benchmark where two arms differ on one."""
    first: dict[str, Credit] = {}
    shared = 0
    for arm, outcome in outcomes.items():
        for problem, credit in outcome.credit.items():
            shared += problem in first
            if first.setdefault(problem, credit) != credit:
                raise SystemExit(f"the arms differ: {arm} gives {problem} other credit")
    return shared


ARMS = {
    "alone": "alone",
    "streaming": "alone",
    "batch_phase": "alone",
    "sync_alone": "sync_alone",
    "sync_phase": "sync_alone",
}
"""Each arm, and the one without judge time that it is held against."""


def report(rows: list[dict[str, Outcome]]) -> dict[str, Any]:
    """Medians over repeats as a table on standard output, and as a mapping."""
    out: dict[str, Any] = {}
    print(f"{'arm':<14}{'step s':>9}{'judge s':>9}{'judge busy':>12}{'exposed':>9}   ages of trained trajectories")
    for arm, base in ARMS.items():
        exposed = [(row[arm].step_s - row[base].step_s) / row[arm].judge_s if row[arm].judge_s else 0.0 for row in rows]
        ages: Counter[int] = Counter()
        for row in rows:
            ages.update(row[arm].ages)
        out[arm] = {
            "step_s": statistics.median(row[arm].step_s for row in rows),
            "judge_s": statistics.median(row[arm].judge_s for row in rows),
            "utilisation": statistics.median(row[arm].utilisation for row in rows),
            "exposed_frac": statistics.median(exposed),
            "all_exposed_frac": exposed,
            "all_step_s": [row[arm].step_s for row in rows],
            "ages": dict(sorted(ages.items())),
        }
        o = out[arm]
        shown = " ".join(f"{age}:{n / ages.total():.0%}" for age, n in sorted(ages.items()))
        figures = f"{o['step_s']:>9.3f}{o['judge_s']:>9.3f}{o['utilisation']:>12.0%}{o['exposed_frac']:>9.1%}"
        print(f"{arm:<14}{figures}   {shown}")
    return out


def run_depth(args: argparse.Namespace, max_age: int) -> dict[str, Any]:
    """The figures of all arms, the streaming ones with slots for `max_age` batches ahead."""
    rows: list[dict[str, Outcome]] = []
    shared = 0
    with tempfile.TemporaryDirectory() as name:
        trace = make_trace(args.sigma, 0.0, args.step_s, args.train_share)
        (Path(name) / "first").mkdir()
        first = run_arm("alone", trace, args.updates, max_age, Path(name) / "first")
        trace = make_trace(args.sigma, args.utilisation * first.step_s, args.step_s, args.train_share)
        for repeat in range(args.repeats):
            rows.append({})
            for arm in ARMS:
                folder = Path(name) / f"{repeat}-{arm}"
                folder.mkdir()
                rows[-1][arm] = run_arm(arm, trace, args.updates, max_age, folder)
            shared += must_agree(rows[-1])
    print(f"\nmax_age {max_age}")
    out = report(rows)
    exposed, phase = (out[arm]["exposed_frac"] for arm in ("streaming", "sync_phase"))
    print(f"{shared} groups compared between arms, all with the same credit")
    print(f"exposed {exposed:.1%} (goal <= {GOAL:.0%}) against {phase:.0%} in a batch phase", flush=True)
    return {"groups_compared": shared, "arms": out}


def main() -> int:
    """0 when all arms gave the same credit; the goal is reported, not enforced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--sigma", type=float, default=0.8)
    parser.add_argument("--utilisation", type=float, default=0.85)
    parser.add_argument("--step-s", type=float, default=0.5, help="of generation alone, every lane full")
    parser.add_argument("--train-share", type=float, default=0.5, help="of the learner, in generation's step time")
    parser.add_argument("--max-age", type=int, nargs="+", default=[2, 3], help="of the streaming arms")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    record: dict[str, Any] = {**settings, "cores": os.cpu_count(), "load": os.getloadavg(), "depths": {}}
    for max_age in args.max_age:
        record["depths"][str(max_age)] = run_depth(args, max_age)
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
