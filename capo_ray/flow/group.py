"""The way of one group: roll out, verify, cut into steps, gather evidence, credit.

    problem -> Trajectory x G -> Verdict x G -> steps -> Evidence -> Judged x G -> GroupCredit -> Sample x G

Each group walks alone and as fast as its own parts allow; every stage is in the ledger before the next begins. A member
whose verdict is invalid is not critiqued, not trained, and stands outside all means and counts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capo_ray.arrays import NO_RUNS, frozen
from capo_ray.config.seeds import response_seed
from capo_ray.credit import assign_credit
from capo_ray.environments import SingleTurn
from capo_ray.evidence import Doors, build_sources, gather
from capo_ray.flow.off_loop import by_rule
from capo_ray.flow.parts import Parts
from capo_ray.flow.quarantine import Gate, Quarantined
from capo_ray.prompts import frame_question
from capo_ray.protocols import Environment, PartLost, PartTimeout, Played, Sampling, Verifier
from capo_ray.steps import SpanError, split_steps, without_thinking
from capo_ray.types import (
    Completion,
    Group,
    GroupCredit,
    Judged,
    Problem,
    Sample,
    Span,
    Trajectory,
    TrajectoryKey,
    Verdict,
)
from capo_ray.work import noting

GROUP_FAILURES = (PartTimeout, PartLost, SpanError, Quarantined)
"""What may befall one group without ending the run; anything else is a defect and ends it."""


@dataclass(frozen=True, slots=True)
class CreditedGroup:
    """A group at the end of its way, with the seconds that each stage took.

    `ended_at` is on the monotonic clock. The stage `critique` lies inside `evidence` and is there where critics were
    asked.
    """

    group: Group
    credit: GroupCredit
    stage_s: dict[str, float]
    ended_at: float

    @property
    def keys(self) -> tuple[TrajectoryKey, ...]:
        return tuple(member.trajectory.key for member in self.group.members)

    @property
    def num_tokens(self) -> int:
        """Response tokens of all members."""
        return sum(member.num_tokens for member in self.group.members)

    @property
    def newest_version(self) -> int:
        """That of the newest token which may be trained: of the members that count, or of all where none does."""
        responses = [
            m.trajectory.response for m, ok in zip(self.group.members, self.credit.included, strict=True) if ok
        ]
        responses = responses or [m.trajectory.response for m in self.group.members]
        return max(run.version for response in responses for run in response.versions)

    @property
    def rewards(self) -> tuple[int, ...]:
        """The valid rewards."""
        return tuple(m.verdict.reward for m in self.group.members if m.verdict.reward is not None)


def to_samples(group: CreditedGroup) -> list[Sample]:
    """What the learner may see of a group: the members that count. Arrays are made here, so call it once."""
    credit, nothing = group.credit, (NO_RUNS,) * len(group.group.members)
    rows = zip(
        group.group.members,
        credit.advantages,
        credit.entropy_weights or nothing,
        credit.imitation_weights or nothing,
        credit.included,
        strict=True,
    )
    return [
        Sample(
            key=member.trajectory.key,
            token_ids=member.trajectory.token_ids,
            sampler_logprobs=member.trajectory.response.logprobs,
            advantages=advantages,
            versions=member.trajectory.response.versions,
            entropy_weights=entropy_weights,
            imitation_weights=imitation_weights,
            acted=member.trajectory.acted,
        )
        for member, advantages, entropy_weights, imitation_weights, included in rows
        if included
    ]


def last_turn(response: Completion) -> str:
    """The text of the policy's last turn: of one turn the whole."""
    start = response.acted[-1][0] if response.acted else 0
    return response.text[int(response.char_ends[start - 1]) :] if start else response.text


async def judge(verifier: Verifier, answer: str, played: Sequence[Played | Trajectory]) -> tuple[Verdict, ...]:
    """The verdict on each response: the environment's own word, else the verifier's on the last turn."""
    texts = [last_turn(one.response) for one in played if one.told is None]
    found = iter(await verifier.verify(answer, texts) if texts else ())
    return tuple(one.told or next(found) for one in played)


class GroupWay:
    """Walks groups from a problem to credited samples."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.environment: Environment = parts.environment or SingleTurn(parts.engine)
        self._gate = Gate(parts.quarantine, parts.ledger, parts.config.run.max_nonfinite_groups)
        doors = Doors(
            config=parts.config,
            tokenizer=parts.tokenizer,
            engine=parts.engine,
            verifier=parts.verifier,
            judge=parts.judge,
            reward_model=parts.reward_model,
            ledger=parts.ledger,
            encode_prompt=self.encode_prompt,
            stops=parts.stops,
        )
        self.sources = build_sources(doors)

    def figures(self) -> dict[str, float]:
        """How many responses were quarantined, and what the sources of evidence tell of themselves."""
        figures = self._parts.quarantine.figures() | self.environment.figures()
        for source in self.sources:
            figures |= source.figures()
        return figures

    def encode_prompt(self, problem: Problem) -> tuple[int, ...]:
        """The policy's prompt token ids of a problem [P]."""
        return frame_question(self._parts.tokenizer, problem.prompt, self._parts.config.model)

    def fits(self, problem: Problem) -> bool:
        """Whether `model.max_model_len` holds prompt, response and what evidence puts beside them."""
        config = self._parts.config
        num_tokens = len(self.encode_prompt(problem)) + config.rollout.max_response_tokens
        num_tokens += sum(source.room_tokens(problem) for source in self.sources)
        return num_tokens <= config.model.max_model_len

    async def walk(self, group_id: int, problem: Problem, attempt: int, progress: float) -> CreditedGroup:
        """The credited group of one problem; `progress` is the share of the run that is done (for schedules)."""
        with noting(group=group_id) as works:
            try:
                return await self._walk(group_id, problem, attempt, progress)
            finally:
                self._parts.ledger.note(works.merged())

    async def _walk(self, group_id: int, problem: Problem, attempt: int, progress: float) -> CreditedGroup:
        ledger = self._parts.ledger
        stage_s: dict[str, float] = {}
        started = time.monotonic()

        def mark(stage: str) -> None:
            nonlocal started
            now = time.monotonic()
            stage_s[stage], started = now - started, now

        trajectories = await self._roll_out(group_id, problem, attempt)
        ledger.record([t.key for t in trajectories], "generated")
        mark("rollout")
        trajectories, cause = self._gate.responses(trajectories)
        keys = [t.key for t in trajectories]
        try:
            members = await self._verify(problem, trajectories)
            ledger.record(keys, "verified")
            mark("verify")
            members, seconds = await gather(self.sources, problem, members, progress)
            stage_s |= seconds
        except GROUP_FAILURES as error:
            ledger.record(keys, "dropped", reason=f"{type(error).__name__}: {error}")
            raise
        mark("evidence")
        group = Group(group_id, problem, tuple(members))
        num_tokens = sum(member.num_tokens for member in members)
        config = self._parts.config.credit
        credit = await by_rule(config, assign_credit, group, config, progress, num_tokens=num_tokens)
        group, credit = self._gate.credited(group, credit, cause)
        ledger.record([m.trajectory.key for m in group.members], "credited")
        mark("credit")
        return CreditedGroup(group, credit, stage_s, ended_at=started)

    async def _verify(self, problem: Problem, trajectories: Sequence[Trajectory]) -> list[Judged]:
        """The trajectories with their verdicts and steps."""
        verdicts = await judge(self._parts.verifier, problem.answer, trajectories)
        if self._parts.config.steps.thinking == "leave_out":
            trajectories = [without_thinking(t) for t in trajectories]
        num_tokens = sum(len(t.response.token_ids) for t in trajectories)
        config = self._parts.config.steps
        steps = await by_rule(config, self._split, trajectories, num_tokens=num_tokens)
        return [Judged(t, v, spans) for t, v, spans in zip(trajectories, verdicts, steps, strict=True)]

    def _split(self, trajectories: Sequence[Trajectory]) -> list[tuple[Span, ...]]:
        return [split_steps(t.response, self._parts.config.steps) for t in trajectories]

    async def _roll_out(self, group_id: int, problem: Problem, attempt: int) -> list[Trajectory]:
        rollout = self._parts.config.rollout
        prompt_ids = self.encode_prompt(problem)
        sampling = Sampling(
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_tokens=rollout.max_response_tokens,
            n=rollout.group_size,
            seed=response_seed(self._parts.config, "rollout", problem.id, group_id, attempt),
            entropies=self._parts.config.reads_entropies,
            **self._parts.stops,
        )
        played = await self.environment.play(problem, prompt_ids, sampling)
        for response in (one.response for one in played):
            if sampling.entropies and len(response.entropies) != response.num_sampled:
                raise RuntimeError(
                    f"the engine was asked for the entropies of {response.num_sampled} tokens, got "
                    f"{len(response.entropies)}"
                )
        shared = frozen(played[0].prompt_ids, np.int32)
        keys = [TrajectoryKey(problem.id, group_id, sample, attempt) for sample in range(len(played))]
        return [Trajectory(k, shared, one.response, one.turns, one.told) for k, one in zip(keys, played, strict=True)]
