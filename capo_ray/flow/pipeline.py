"""The run: producers fill the slot buffer, one consumer trains from it, and every end is a stated one.

Invariants
- A ticket is taken before a problem is drawn and ends once: finished (then released after the publish) or abandoned.
- A slot is freed only when the engines hold the update that its group went into, so rollouts never run ahead of the
  learner by more than `stream.max_age` versions; tokens older all the same (a long response's first) are masked.
- A trajectory is `trained` in the ledger before the checkpoint of that version is written; a resumed run rewinds the
  ledger to its checkpoint, so nothing is trained twice in the surviving line of versions.
- A crashed loop ends the run with its own exception.
- Every end between two updates leaves a checkpoint of the last one: the planned, the early, the asked-for, the failed.
  An end inside an update leaves the one before: half an update is in no checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from capo_ray.buffer import SlotBuffer, Taken, Ticket
from capo_ray.flow.ages import Sorted, sort_by_age
from capo_ray.flow.budgets import Budgets, batch_deadline_s
from capo_ray.flow.evaluate import EvalReport, HeldOut
from capo_ray.flow.figures import update_figures
from capo_ray.flow.group import GROUP_FAILURES, CreditedGroup, GroupWay
from capo_ray.flow.idle import Idle
from capo_ray.flow.judging import judge_figures
from capo_ray.flow.off_loop import off_loop
from capo_ray.flow.outcome import RunOutcome, first_cause
from capo_ray.flow.parts import Parts
from capo_ray.flow.saving import Saver
from capo_ray.flow.shown import kept, shown
from capo_ray.flow.state import RunState
from capo_ray.flow.training import Training, record_update
from capo_ray.flow.waking import unless_woken
from capo_ray.protocols import PartTimeout, RunFailed
from capo_ray.types import Problem, UpdateReport, Watched

MAX_ATTEMPTS = 2
MAX_TOO_LONG = 1000

Trained = tuple[list[CreditedGroup], UpdateReport, Sorted]


@dataclass
class _Flight:
    """A group under way: its problem and which attempt at it this is."""

    problem: Problem
    attempt: int


@dataclass
class Pipeline:
    """One run over `parts`, from `state` on."""

    parts: Parts
    state: RunState
    _retries: deque[_Flight] = field(default_factory=deque)
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _walks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        config = self.parts.config
        self.way = GroupWay(self.parts)
        self.training = Training(self.parts, self.state)
        self.held_out = HeldOut(self.parts, self.way, self._note)
        self.num_slots = config.num_slots
        self.buffer: SlotBuffer[CreditedGroup] = SlotBuffer(
            self.num_slots, config.stream.max_age, on_stale=self._drop_stale
        )
        self.budgets, self._idle = Budgets(config), Idle()
        self._wake = asyncio.Event()
        self.saver = Saver(self.parts, self.state, self._moment, self._wake.set, self.parts.ledger.check)
        self._stop: str | None = None
        self._streaming = False
        self._update: asyncio.Future[Trained] | None = None
        self._retries.extend(_Flight(p, a) for p, a in self.state.outstanding)
        self._started = time.monotonic()
        self._deadline = self._started + config.run.max_minutes * 60 if config.run.max_minutes else None

    async def run(self) -> RunOutcome:
        """The outcome after `run.num_updates` updates, or earlier where the run says why.

        One that is resumed after its last update is only evaluated.
        """
        if self.state.version < self.parts.config.run.num_updates:
            self.held_out.begin(self.state.version)
        try:
            self._streaming = True
            stopped_early = await self._stream()
            await self.saver.save_last()
        except Exception as failure:  # noqa: BLE001 whatever it is, it is raised once the run is saved
            self.held_out.cancel()
            cause = first_cause(failure)
            await self.saver.rescue(cause, self._update)
            raise cause from None
        finally:
            self._streaming = False
        if self._stop is not None:
            self.held_out.cancel()
            return self._outcome(None, self._stop, asked_to_end=True)
        self.parts.progress.update(phase="last evaluation")
        # Publishes wait for what is under way, so that is of the last version as well.
        last = await self.held_out.settle() or await self.held_out.evaluate(self.state.version)
        return self._outcome(last, stopped_early)

    def stop(self, reason: str) -> bool:
        """Ask the run to save a checkpoint and end; False where it has nothing to save just now."""
        if self._streaming:
            self._stop = reason
            self._wake.set()
        return self._streaming

    def _outcome(self, last: EvalReport | None, stopped_early: str, asked_to_end: bool = False) -> RunOutcome:
        return RunOutcome({} if last is None else last.summary(), self.state, stopped_early, asked_to_end)

    async def _stream(self) -> str:
        """Produce and consume side by side until the consumer is done; why it stopped early, or nothing."""
        async with asyncio.TaskGroup() as tasks:
            producer = tasks.create_task(self._produce(tasks), name="produce")
            try:
                return await self._consume()
            finally:
                producer.cancel()
                for task in self._walks:
                    task.cancel()

    async def _produce(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            ticket = await self.buffer.admit(self.state.version)
            flight = self._retries.popleft() if self._retries else _Flight(self._draw(), 0)
            group_id = self.state.next_group
            self.state.next_group += 1
            self._flights[group_id] = flight
            task = tasks.create_task(self._walk(ticket, group_id, flight), name=f"group {group_id}")
            self._walks.add(task)
            task.add_done_callback(self._walks.discard)

    def _draw(self) -> Problem:
        """The next problem whose prompt fits; those that do not are counted and passed over."""
        for _ in range(MAX_TOO_LONG):
            problem = self.parts.problems.train.next_problem(self._progress)
            if self.way.fits(problem):
                return problem
            self.state.num_too_long += 1
        raise RunFailed(
            f"expected prompts that leave room for rollout.max_response_tokens="
            f"{self.parts.config.rollout.max_response_tokens} in model.max_model_len="
            f"{self.parts.config.model.max_model_len}, got {MAX_TOO_LONG} in a row that do not; raise "
            f"model.max_model_len or lower rollout.max_response_tokens"
        )

    async def _walk(self, ticket: Ticket, group_id: int, flight: _Flight) -> None:
        try:
            group = await self.way.walk(group_id, flight.problem, flight.attempt, self._progress)
        except GROUP_FAILURES as error:
            self._fail(ticket, group_id, flight, error)
            return
        self.state.critic.count(group, self.parts.step_truth)
        self.state.count(group)
        self.parts.problems.train.observe(flight.problem, group.rewards)
        self.budgets.judged(group)
        self.budgets.credit(group)
        if group.credit.has_signal or (any(group.credit.included) and not self.parts.config.stream.replace_creditless):
            self.buffer.finish(ticket, group, group.newest_version)
            return
        self.parts.ledger.record(group.keys, "dropped", reason="no_credit")
        self._end(ticket, group_id)

    @property
    def _progress(self) -> float:
        """The share of the run that is done."""
        return self.state.version / self.parts.config.run.num_updates

    def _end(self, ticket: Ticket, group_id: int) -> None:
        self._flights.pop(group_id, None)
        self.buffer.abandon(ticket)

    def _fail(self, ticket: Ticket, group_id: int, flight: _Flight, error: Exception) -> None:
        """Try the problem of a failed group once more, and count."""
        reason = f"{type(error).__name__}: {error}"
        if flight.attempt + 1 < MAX_ATTEMPTS:
            self._retries.append(_Flight(flight.problem, flight.attempt + 1))
        else:
            self.parts.problems.train.observe(flight.problem, ())
        self._end(ticket, group_id)
        self.budgets.failed(reason)

    def _drop_stale(self, ticket: Ticket, group: CreditedGroup) -> None:
        self.parts.ledger.record(group.keys, "dropped", reason="stale")
        self._flights.pop(group.group.id, None)
        self.state.num_stale += 1

    async def _consume(self) -> str:
        config = self.parts.config
        while self.state.version < config.run.num_updates:
            if self._deadline is not None and time.monotonic() > self._deadline:
                return f"run.max_minutes={config.run.max_minutes} is over"
            self.saver.raise_if_failed()
            self.budgets.raise_if_failed()
            if self._stop is not None:
                return self._stop
            if (solved := self.budgets.solved) is not None:
                return solved
            self.parts.progress.update(phase="rollout", queues=self._queues())
            started = time.monotonic()
            if (taken := await self._take()) is not None:
                await self._train(taken, waited_s=time.monotonic() - started)
        return ""

    async def _take(self) -> Sequence[Taken[CreditedGroup]] | None:
        """One batch of groups; None when the budgets, a checkpoint or a signal have something to say first."""
        config = self.parts.config
        deadline_s = batch_deadline_s(config)
        take = self.buffer.take(config.learner.groups_per_batch, self.state.version, deadline_s)
        try:
            return await unless_woken(take, self.budgets.exhausted, self._wake)
        except PartTimeout as error:
            raise RunFailed(
                f"no batch of {config.learner.groups_per_batch} groups was finished within {deadline_s:.0f} s "
                f"({self._queues()}); look at the workers' logs, or raise rollout.deadline_s"
            ) from error

    async def _train(self, taken: Sequence[Taken[CreditedGroup]], waited_s: float) -> None:
        self.parts.progress.update(phase="update", queues=self._queues())
        # Shielded: an end of the run lets an update come to its own, which is then saved with it.
        self._update = asyncio.ensure_future(self._update_on(taken))
        groups, report, aged = await asyncio.shield(self._update)
        self.parts.progress.update(phase="evaluation")
        await unless_woken(self.held_out.settle(), self._wake)  # a signal or a failed checkpoint cannot wait for it
        self.parts.progress.update(phase="publish")
        publish_s = await self.training.publish()
        self.buffer.release([t.ticket for t in taken])
        figures = await off_loop(update_figures, groups, report.metrics, num_tokens=sum(g.num_tokens for g in groups))
        figures |= aged.figures() | {
            "stream/stale_groups_total": float(self.state.num_stale),
            "time/update_s": report.seconds,
            "time/publish_s": publish_s,
            "time/wait_for_batch_s": waited_s,
            "queue/in_flight_groups": float(len(self._flights)),
            "queue/finished_groups": float(self.buffer.num_finished),
        }
        figures |= self.parts.problems.train.figures()
        figures |= {name: float(value) for name, value in self.parts.part_stats().items()}
        figures |= self._idle.figures(figures)
        step_s = waited_s + report.seconds + publish_s
        figures |= judge_figures(groups, self.parts.config, waited_s=waited_s, step_s=step_s)
        figures |= self.state.critic.figures() | self.budgets.figures() | self.way.figures()
        await self._after_update(groups, figures, report.watched)

    async def _update_on(self, taken: Sequence[Taken[CreditedGroup]]) -> Trained:
        """The groups as they were trained, the report and what became of their samples, all written down."""
        # In the order of their draw, not of their end: sums then round alike in every run of the same seed.
        in_order = sorted((t.item for t in taken), key=lambda credited: credited.group.id)
        groups, report = await self.training.update(in_order)
        aged = sort_by_age(groups, report.version - 1, self.parts.config.stream.max_age)
        record_update(self.parts.ledger, aged.trained, aged.masked, report)
        self.parts.ledger.record(aged.stale, "dropped", reason="stale")
        self.parts.ledger.record(aged.invalid, "dropped", reason="invalid_verdict")
        for group in groups:
            self._flights.pop(group.group.id, None)
        self.state.version = report.version
        self.state.num_trained += len(aged.trained) if report.moved else 0
        self.state.num_masked_tokens += aged.num_masked if report.moved else 0
        return groups, report, aged

    async def _after_update(self, groups: Sequence[CreditedGroup], figures: dict[str, float], watched: Watched) -> None:
        parts, run, version = self.parts, self.parts.config.run, self.state.version
        if run.eval_every and version % run.eval_every == 0 and version < run.num_updates:
            self.held_out.begin(version)
        for one in kept(groups, run, version):
            await asyncio.to_thread(parts.transcripts.write_group, version, one.group, one.credit, watched)
        parts.tracker.log(figures, update=version)
        parts.progress.update(update=version, queues=self._queues(), **shown(groups, figures))
        if version % run.checkpoint_every == 0 or version == run.num_updates:
            parts.progress.update(phase="checkpoint")
            await self.saver.begin()

    def _note(self, report: EvalReport) -> None:
        """Log an evaluation, and keep that of the policy before its first update for the summary."""
        self.parts.tracker.log(report.figures(), update=report.version)
        if report.version == 0 and report.sampled:
            self.state.initial = report.summary()
        self.parts.progress.update(held_out=report.accuracy.value)

    def _moment(self) -> dict[str, Any]:
        """The counters, the cursor, and what is drawn but neither trained nor dropped, as a checkpoint keeps them."""
        flights = [(f.problem, f.attempt) for f in [*self._flights.values(), *self._retries]]
        return self.state.to_payload(flights, self.parts.problems.train.state(), time.monotonic() - self._started)

    def _queues(self) -> dict[str, int]:
        finished = self.buffer.num_finished
        return {"in_flight": len(self._flights) - finished, "finished": finished, "slots": self.num_slots}
