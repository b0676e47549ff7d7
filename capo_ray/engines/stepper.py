"""The one thread that steps a vLLM engine; everything else hands it jobs and commands and is called back.

    any thread: submit, cancel, between_steps --inbox--> stepping thread: commands, one decode step, commands, ...

Invariants: only the stepping thread touches the engine; every job ends exactly once, by `done` or by `fail`, unless it
was cancelled; an exception in a step fails every job with that exception as its cause and breaks the engine for good.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from capo_ray.engines.scheduling import Pace, core_of, in_flight, nothing_scheduled
from capo_ray.protocols import PartLost, PartTimeout
from capo_ray.weights import Held

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine


class EngineBroken(PartLost):
    """The engine's stepping thread died; its cause is the exception's cause. Start another engine."""


@dataclass(eq=False)
class Job:
    """Requests that belong together. Callbacks run on the stepping thread and must not block."""

    requests: Sequence[tuple[Sequence[int], SamplingParams]]
    done: Callable[[int, RequestOutput], None]
    fail: Callable[[BaseException], None]
    restarts: bool = False
    """Begin again if the weights change before a request is finished (scores: one answer, one version)."""
    priority: int = 0
    """Lower goes first."""
    pending: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Command:
    run: Callable[[], None]
    refuse: Callable[[BaseException], None]
    """Called instead of `run` when the engine is gone."""


class Stepper:
    """Runs `build()` on a new thread and steps what it returns until closed or broken."""

    def __init__(self, build: Callable[[], LLMEngine], close: Callable[[LLMEngine], None], name: str) -> None:
        self._build = build
        self._close = close
        self._wake = threading.Condition()
        self._inbox: deque[_Command] = deque()
        self._jobs: dict[str, Job] = {}
        self._ids = itertools.count()
        self._closing = False
        self._started: Future[None] = Future()
        self.cause: BaseException | None = None
        self.salt = "0"
        self.held: Held | None = None
        self.seconds_busy = 0.0
        self.num_steps = 0
        self._step_began: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"steps {name}", daemon=True)

    # -- from any thread

    def start(self, deadline_s: float) -> None:
        """Return once the engine is built; raises what building raised, or `PartTimeout`."""
        self._thread.start()
        try:
            self._started.result(deadline_s)
        except TimeoutError as error:
            if self._started.done():
                raise
            self.close(0.0)
            raise PartTimeout(f"the engine did not start within {deadline_s:g} s") from error

    def submit(self, job: Job, check: Callable[[], None]) -> None:
        """Queue the job's requests; `check` is made on the stepping thread first, and what it raises fails the job."""

        def admit() -> None:
            try:
                check()
            except RuntimeError as error:
                job.fail(error)
            else:
                self._add(job)

        self._post(admit, job.fail)

    def cancel(self, job: Job) -> None:
        """Free what is left of the job; nothing of it is called back afterwards. Too late is no error."""
        self._post(lambda: self.abort(job), lambda _: None)

    def between_steps(self, call: Callable[[LLMEngine], Any]) -> Future[Any]:
        """The result of `call`, made on the stepping thread with no step under way.

        What `call` raises goes to the future; if it wants the engine dead it raises `EngineBroken`.
        """
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(call(self.engine))
            except BaseException as error:
                future.set_exception(error)
                if isinstance(error, EngineBroken) or not isinstance(error, Exception):
                    raise

        self._post(run, future.set_exception)
        return future

    def close(self, deadline_s: float = 30.0) -> None:
        """Stop stepping, fail what still waits, release the engine. May be called more than once."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(deadline_s)

    @property
    def alive(self) -> bool:
        """Whether the engine was started and neither broke nor was closed."""
        return self._thread.is_alive() and self.cause is None and not self._closing

    def raise_if_broken(self) -> None:
        """Raise `EngineBroken` with its cause if the engine cannot serve."""
        if not self.alive:
            raise self._broken()

    def seconds_in_step(self) -> float:
        """How long the step under way has taken so far; 0 where there is none."""
        began = self._step_began
        return 0.0 if began is None else time.perf_counter() - began

    def request_counts(self) -> tuple[int, int]:
        """Requests running and waiting; none where there is no engine (any more)."""
        # The stepping thread may take the engine away at any moment.
        engine: LLMEngine | None = getattr(self, "engine", None)
        counts: tuple[int, int] = core_of(engine).scheduler.get_request_counts() if engine is not None else (0, 0)
        return counts

    # -- on the stepping thread

    def step(self) -> list[tuple[Job, int, RequestOutput]]:
        """The finished requests of one engine step, each with its job; the jobs have not been told yet."""
        before = self._step_began = time.perf_counter()
        outputs = self.engine.step()
        spent = time.perf_counter() - before
        self._step_began = None
        self.seconds_busy += spent
        self.num_steps += 1
        self.pace.after_step()
        finished: list[tuple[Job, int, RequestOutput]] = []
        for output in outputs:
            job = self._jobs.get(output.request_id)
            if job is not None and output.finished:
                del self._jobs[output.request_id]
                finished.append((job, job.pending.pop(output.request_id), output))
        if not outputs and spent < 1e-3 and not core_of(self.engine).scheduler.running:
            # Nothing ran, nothing is in flight: a grammar is still compiling. Leave it the core.
            with self._wake:
                if not self._inbox and not self._closing:
                    self._wake.wait(2e-3)
        return finished

    def drain(self) -> list[tuple[Job, int, RequestOutput]]:
        """As `step`, but schedules nothing and returns with no step in flight: the next token is of a new step."""
        finished: list[tuple[Job, int, RequestOutput]] = []
        if in_flight(self.engine):
            with nothing_scheduled(self.engine):
                while in_flight(self.engine):
                    finished += self.step()
        return finished

    def add(self, job: Job, indices: Sequence[int] | None = None) -> None:
        """Give the engine the job's requests (all, or those of `indices`); raises what vLLM finds wrong with them."""
        for index in range(len(job.requests)) if indices is None else indices:
            prompt, params = job.requests[index]
            name = str(next(self._ids))
            # Cached prefixes are found only under the version that computed them.
            tokens: Any = {"prompt_token_ids": list(prompt), "cache_salt": self.salt}
            try:
                self.engine.add_request(name, tokens, params, priority=job.priority)
            except Exception as error:
                if "VLLMClientError" in (base.__name__ for base in type(error).__mro__):
                    raise ValueError(f"vLLM refused the request: {error}") from error
                raise
            self._jobs[name] = job
            job.pending[name] = index

    def abort(self, job: Job) -> None:
        """Take the job's unfinished requests out of the engine."""
        names = [name for name in job.pending if self._jobs.pop(name, None) is not None]
        if names:
            self.engine.abort_request(names)
        job.pending.clear()

    def jobs(self) -> list[Job]:
        """The jobs with unfinished requests, oldest first."""
        return list(dict.fromkeys(self._jobs.values()))

    def fail_all(self, error: BaseException) -> None:
        """End every job with `error` and leave the engine empty."""
        for job in self.jobs():
            self.abort(job)
            job.fail(error)

    def _add(self, job: Job) -> None:
        try:
            self.add(job)
        except (ValueError, TypeError) as error:
            # vLLM refused this request (too long, bad regex): its own caller hears of it, nobody else.
            self.abort(job)
            job.fail(error)

    def _post(self, command: Callable[[], None], refuse: Callable[[BaseException], None]) -> None:
        with self._wake:
            if self.alive:
                self._inbox.append(_Command(command, refuse))
                self._wake.notify_all()
                return
        refuse(self._broken())

    def _run(self) -> None:
        try:
            engine = self._build()
            config = engine.vllm_config
            self.pace = Pace(
                engine,
                config.model_config.max_model_len,
                whole_prompts=not config.scheduler_config.enable_chunked_prefill,
            )
            self.engine = engine
        except BaseException as error:  # noqa: BLE001 - whoever called `start` raises it
            self.cause = error
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._end(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._end(None)

    def _turn(self) -> bool:
        """Run what is in the inbox and one step; False once closing."""
        with self._wake:
            while not self._inbox and not self._jobs and not self._closing:
                self._wake.wait(60.0)
            if self._closing:
                return False
            commands, self._inbox = self._inbox, deque()
        while commands:
            try:
                commands.popleft().run()
            except BaseException:
                self._inbox.extendleft(reversed(commands))
                raise
        if self._jobs:
            for job, index, output in self.step():
                job.done(index, output)
        return True

    def _end(self, cause: BaseException | None) -> None:
        """Nothing waits for ever: fail all jobs and commands, then let the engine go."""
        with self._wake:
            self.cause = cause
            self._closing = True
            commands, self._inbox = self._inbox, deque()
        error = self._broken()
        for job in dict.fromkeys(self._jobs.values()):
            job.fail(error)
        self._jobs.clear()
        for command in commands:
            command.refuse(error)
        self._close(self.engine)
        del self.engine

    def _broken(self) -> EngineBroken:
        if self.cause is None:
            return EngineBroken("the engine is not running: closed, or not started")
        error = EngineBroken(f"the engine broke and must be started anew: {self.cause!r}")
        error.__cause__ = self.cause
        return error
