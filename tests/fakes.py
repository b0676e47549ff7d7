"""Fakes of the parts, for tests that must control time, loss and content. A token is a character."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capo_ray.checkpoint import CheckpointStore
from capo_ray.config import TrainConfig
from capo_ray.flow import Parts
from capo_ray.flow.direct import Direct
from capo_ray.ledger import SqliteLedger
from capo_ray.metrics.register import unregistered
from capo_ray.protocols import JudgeRequest, Sampling, WeightsHandle
from capo_ray.types import (
    Batch,
    Completion,
    Critique,
    Group,
    Problem,
    Provenance,
    Sample,
    Trajectory,
    TrajectoryKey,
    UpdateReport,
    Verdict,
    VersionRun,
    WeightedSample,
    WrittenFile,
)


class FakeTokenizer:
    """Characters as ids; id 0 ends the text."""

    eos_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    encode_data = encode

    def chat_frame(self, system: str) -> None:
        return None

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]], *, begins: bool) -> list[int]:
        return self.encode("".join(text for text, _ in pieces))

    def stop_ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
        return tuple(map(ord, tokens))

    def reply_frame(self) -> None:
        return None

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in token_ids if i)

    def decode_pieces(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        text = self.decode(token_ids)
        return text, tuple(range(1, len(text) + 1))


def completion(text: str, version: int = 0) -> Completion:
    """A finished response to `text`, its end token included."""
    n = len(text) + 1
    return Completion(
        token_ids=(*map(ord, text), 0),
        logprobs=(-0.5,) * n,
        char_ends=(*range(1, n), n - 1),
        text=text,
        versions=(VersionRun(version, n),),
        finish="stop",
    )


class FakeProblems:
    """Problem i asks for the digit i % 10."""

    def __init__(self) -> None:
        self.cursor = 0
        self.train = self

    def next_problem(self, progress: float = 0.0) -> Problem:
        self.cursor += 1
        return self._problem(self.cursor - 1)

    def observe(self, problem: Problem, rewards: Sequence[int]) -> None:
        """Learn nothing."""

    def figures(self) -> dict[str, float]:
        return {}

    def _problem(self, i: int) -> Problem:
        return Problem(id=f"p{i}", prompt=f"digit {i}", answer=str(i % 10))

    def held_out(self, count: int) -> list[Problem]:
        return [self._problem(10_000 + i) for i in range(count)]

    def state(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def restore(self, state: dict[str, Any]) -> None:
        self.cursor = state["cursor"]


class FakeEngine:
    """Answers rightly with probability `skill`; a request takes `delay_s()`; `fail` may raise."""

    def __init__(self, skill: float = 0.5, delay_s: Callable[[], float] = lambda: 0.0, seed: int = 0) -> None:
        self.skill, self.delay_s = skill, delay_s
        self.version = 0
        self.rng = random.Random(seed)
        self.fail: Callable[[], None] = lambda: None

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        version = self.version
        await asyncio.sleep(self.delay_s())
        self.fail()
        answer = chr(list(prompt_ids)[-2])
        wrong = str((int(answer) + 1) % 10)
        picks = [answer if self.rng.random() < self.skill else wrong for _ in range(sampling.n)]
        done = [completion(f"think\n\n{pick}", version) for pick in picks]
        if sampling.entropies:
            done = [replace(each, entropies=(0.5,) * len(each.token_ids)) for each in done]
        return tuple(done)

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        return tuple((-1.0 / len(ids),) * (len(ids) - start) for ids, start in zip(token_ids, starts, strict=True))

    async def load_weights(self, handle: WeightsHandle) -> int:
        self.version = handle.version
        return handle.version


class FakeVerifier:
    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        return tuple(Verdict(int(r.endswith(answer)), "compared", r[-1:]) for r in responses)


class FakeJudge:
    """Flags the last step of each response in `flag_frac` of the votes."""

    def __init__(self, flag_frac: float = 1.0) -> None:
        self.flag_frac = flag_frac

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        def vote(request: JudgeRequest, index: int) -> Critique:
            right = request.steps[-1].endswith(problem.answer)
            flagged = (
                frozenset() if right or index >= num_votes * self.flag_frac else frozenset({len(request.steps) - 1})
            )
            return Critique(flagged, right, "", "read", Provenance("fake", "", index))

        return tuple(tuple(vote(r, i) for i in range(num_votes)) for r in responses)


def trained_ages(weighted: WeightedSample, version: int) -> list[int]:
    """The ages at `version` of the tokens that have weight, one by one."""
    spans = zip([0, *(run.end for run in weighted.sample.versions)], weighted.sample.versions, strict=False)
    ages = [version - run.version for start, run in spans for _ in range(start, run.end)]
    return [age for age, weight in zip(ages, weighted.loss_weights, strict=True) if weight]


def written(path: Path, text: str) -> WrittenFile:
    """A file with this text, as a rank would report it."""
    path.write_text(text)
    return WrittenFile(path.name, len(text.encode()), hashlib.sha256(text.encode()).hexdigest())


class FakeLearner:
    """Counts what it is given; `ages` are those of each sample's oldest trained token."""

    def __init__(self) -> None:
        self.version = 0
        self.batches: list[list[TrajectoryKey]] = []
        self.samples: list[Sample] = []
        self.kl_scales: list[float] = []
        self.references: list[int] = []
        self.entropy_nats = 1.0
        self.ages: list[int] = []

    async def update(self, batch: Batch) -> UpdateReport:
        weighted = [w for row in batch.grid for cell in row for w in cell]
        samples = [w.sample for w in weighted]
        self.batches.append([s.key for s in samples])
        self.ages += [max(trained_ages(w, self.version)) for w in weighted]
        await asyncio.sleep(0.001)
        self.version += 1
        self.samples += samples
        self.kl_scales.append(batch.kl_scale)
        told = {s.key: {"policy_logprobs": s.sampler_logprobs - 0.5} for s in samples if s.key in batch.watched}
        figures = {"loss/objective_mean": 0.0, "loss/entropy_nats": self.entropy_nats}
        return UpdateReport(self.version, figures, 0.001, watched=told)

    async def refresh_reference(self) -> None:
        self.references.append(self.version)

    async def publishable(self) -> WeightsHandle:
        return WeightsHandle(self.version, "", None)

    async def logprobs(self, token_ids: Any, starts: Any) -> Any:
        return tuple((0.0,) for _ in token_ids)

    async def snapshot(self) -> int:
        self.copied = self.version
        return self.copied

    async def save(self, path: str) -> tuple[WrittenFile, ...]:
        return (written(Path(path) / "version", str(self.copied)),)

    async def load(self, path: str) -> int:
        self.version = int((Path(path) / "version").read_text())
        return self.version

    async def export(self, path: str) -> tuple[WrittenFile, ...]:
        return (written(Path(path) / "config.json", "{}"),)


class FakeRewardModel:
    """Rewards the last token of a response by what it has been trained on: right answers less wrong ones."""

    def __init__(self) -> None:
        self.version = 0
        self.level = 0.25
        self.rewarded: list[TrajectoryKey] = []
        self.trained: list[list[TrajectoryKey]] = []
        self.levels: list[float] = []

    async def token_rewards(self, trajectories: Sequence[Trajectory]) -> tuple[tuple[float, ...], ...]:
        await asyncio.sleep(0)
        self.rewarded += [t.key for t in trajectories]
        return tuple((0.0,) * (len(t.response.token_ids) - 1) + (self.level,) for t in trajectories)

    async def update(self, groups: Sequence[Group]) -> UpdateReport:
        await asyncio.sleep(0.001)
        members = [m for group in groups for m in group.members if m.verdict.valid]
        self.trained.append([m.trajectory.key for m in members])
        self.level += sum(2 * (m.verdict.reward or 0) - 1 for m in members)
        self.levels.append(self.level)
        self.version += 1
        return UpdateReport(self.version, {"reward_model/loss_mean": 0.5}, 0.25)

    async def snapshot(self) -> int:
        self.copied = f"{self.version} {self.level}"
        return self.version

    async def save(self, path: str) -> tuple[WrittenFile, ...]:
        return (written(Path(path) / "state", self.copied),)

    async def load(self, path: str) -> int:
        version, level = (Path(path) / "state").read_text().split()
        self.version, self.level = int(version), float(level)
        return self.version


class Recorder:
    """Tracker, progress and transcripts that only remember."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: Any, *, update: int) -> None:
        assert not (unknown := unregistered(metrics)), f"not in capo_ray/metrics/register.py: {unknown}"
        self.rows.append((update, dict(metrics)))

    def update(self, **figures: Any) -> None:
        """Progress: forgotten."""

    def write_group(self, *arguments: Any) -> None:
        """Transcripts: forgotten."""

    def close(self) -> None:
        """Nothing to close."""


def fake_parts(tmp_path: Path, config: TrainConfig, **replaced: Any) -> Parts:
    """Parts of a run over fakes, the ledger and the checkpoints being real."""
    recorder = Recorder()
    parts: dict[str, Any] = {
        "tokenizer": FakeTokenizer(),
        "problems": FakeProblems(),
        "engine": FakeEngine(),
        "verifier": FakeVerifier(),
        "judge": FakeJudge(),
        "learner": FakeLearner(),
        "ledger": SqliteLedger(tmp_path / "ledger.sqlite", "run"),
        "checkpoints": CheckpointStore(tmp_path / "checkpoints", 2),
        "tracker": recorder,
        "transcripts": recorder,
        "progress": recorder,
    }
    parts |= replaced
    return Parts(config=config, **{"publisher": Direct(parts["learner"], parts["engine"]), **parts})
