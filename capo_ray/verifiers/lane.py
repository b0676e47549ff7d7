"""One child process and the thread that keeps its time: hands it pairs, kills what hangs, goes on with the rest.

A lane with `suspects` gives up a pair early, after processor time that no ordinary check needs, and passes it on: the
pairs behind it go on in a checker that is ready, and what is slow waits only for others that are slow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import IO, Any

from capo_ray.protocols import PartLost
from capo_ray.verifiers.frames import Pipe, PipeClosed, PipeTimeout, pack
from capo_ray.verifiers.jobs import Job, Limit, Outcome
from capo_ray.verifiers.processes import close_pid, cpu_seconds, held_seconds, kill, open_pid

START_DEADLINE_S = 60.0
MAX_FAILED_STARTS = 3
MAX_BATCH_PAIRS = 8
SEND_DEADLINE_S = 5.0
CRASHED = "crash: the check ended its process"
MIN_WAIT_S = 0.01
LATE_S = 0.1  # what reading the clock of another process may cost
MAX_AUDITED_KEPT = 100
_KEPT_ENV = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV", "TZ")
_DATA_ENV = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE")  # where an environment's data lie


class Lane(threading.Thread):
    """A thread that owns one child; ends after `stop()`.

    A pair's time is up at `limit`: then it goes to `suspects`, or is invalid where there is none.
    """

    def __init__(
        self,
        name: str,
        settings: dict[str, Any],
        jobs: SimpleQueue[Job | None],
        limit: Limit,
        share: int = 1,
        suspects: Callable[[Job], None] | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._settings, self._jobs, self._limit, self._share = settings, jobs, limit, share
        self._suspects = suspects
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Pipe | None = None
        self._errors: IO[bytes] | None = None
        self._checker: int | None = None  # pidfd (or pid) of the checker that is ready for a batch
        self._pid, self._cpu_s = 0, 0.0  # of that checker: its number, its processor time at the last reply
        self._batch = 0  # number of the batch sent last: a reply to any other is nobody's
        self._failed_starts = 0
        self._stopping = threading.Event()
        self.counts: Counter[str] = Counter()
        self.audited: list[str] = []
        self.began = time.monotonic()
        self.busy_s = self.slowest_s = self.cpu_s = self.peak_mib = 0.0

    def run(self) -> None:
        try:
            self._become_ready()
            while (job := self._jobs.get()) is not None and not self._stopping.is_set():
                self._do([job, *self._more()])
        finally:
            self._drop_child()

    def stop(self) -> None:
        """Kill the child now; a pair in its hands ends as lost."""
        self._stopping.set()
        self._jobs.put(None)
        process = self._process
        if process is not None:
            self._kill_checker()
            process.kill()

    def _more(self) -> list[Job]:
        """Further jobs that wait already: this lane's share of them."""
        batch: list[Job] = []
        wanted = min(MAX_BATCH_PAIRS, -(-self._jobs.qsize() // self._share)) - 1
        while len(batch) < wanted:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is None:  # the end is for after this batch
                self._jobs.put(None)
                break
            batch.append(job)
        return batch

    def _do(self, batch: list[Job]) -> None:
        """End every job of a batch."""
        start = time.monotonic()
        while batch and not self._stopping.is_set():
            if not self._become_ready():
                break
            self._serve(batch)
        self.busy_s += time.monotonic() - start
        for job in batch:
            job.lose(PartLost(self._why_lost()))

    def _serve(self, batch: list[Job]) -> None:
        """Send the batch and end its jobs in order, up to and with the first that hangs or crashes its checker."""
        assert self._pipe is not None
        try:
            self._batch += 1
            pairs = [[job.answer, job.response] for job in batch]
            self._pipe.send(pack({"batch": self._batch, "pairs": pairs}), SEND_DEADLINE_S)
            while batch:
                reply = self._reply(self._pipe, batch[0])
                if "ready" in reply:
                    self._hello(reply)
                    self._end(batch.pop(0), Outcome(None, CRASHED, lasting=False), "crashes")
                    return
                self._end(batch.pop(0), self._outcome(reply))
                self._count_cpu(reply["cpu"] - self._cpu_s)
                self._cpu_s = reply["cpu"]
                self.peak_mib = max(self.peak_mib, reply["mib"])
                if reply.get("last"):
                    self._close_checker()
        except PipeTimeout:
            self._give_up(batch.pop(0))
        except PipeClosed:
            self._drop_child()
            if not self._stopping.is_set():
                self._end(batch.pop(0), Outcome(None, CRASHED, lasting=False), "crashes")

    def _reply(self, pipe: Pipe, job: Job) -> dict[str, Any]:
        """The next reply; raises `PipeTimeout` once the pair has had its time in this lane."""
        start, held_s = time.monotonic(), held_seconds(self._pid)
        wait_s = min(self._limit.wall_s - job.spent_s, self._limit.cpu_s, self._limit.own_s)
        try:
            while True:
                try:
                    return self._receive(pipe, max(wait_s, 0.0))
                except PipeTimeout:
                    took_s = time.monotonic() - start
                    left_s = self._limit.wall_s - job.spent_s - took_s
                    left_cpu_s = self._limit.cpu_s - (cpu_seconds(self._pid) - self._cpu_s)
                    left_own_s = self._limit.own_s - took_s + held_seconds(self._pid) - held_s
                    if min(left_s, left_cpu_s, left_own_s) <= 0:
                        raise
                    wait_s = min(left_s, max(min(left_cpu_s, left_own_s), MIN_WAIT_S))
        finally:
            job.spent_s += time.monotonic() - start

    def _count_cpu(self, used_s: float) -> None:
        """Add the processor seconds of one check."""
        self.cpu_s += used_s
        self.slowest_s = max(self.slowest_s, used_s)
        self.counts["late"] += used_s > self._settings["timeout_s"] + LATE_S

    def _give_up(self, job: Job) -> None:
        """Kill the checker that holds a pair whose time here is up; pass the pair on, or end it as invalid."""
        used_s = min(cpu_seconds(self._pid) - self._cpu_s, self._limit.wall_s)
        self._count_cpu(used_s)
        self._kill_checker()
        self._close_checker()
        if self._suspects is not None:
            self.counts["suspects"] += 1
            self._suspects(job)
            return
        ran = used_s >= self._limit.cpu_s - MIN_WAIT_S
        clock = " of processor time" if ran else ""
        reason = f"timeout: no verdict within {self._settings['timeout_s']:g} s{clock}"
        self._end(job, Outcome(None, reason, lasting=ran), "timeouts")

    def _outcome(self, reply: dict[str, Any]) -> Outcome:
        lasting = reply["reward"] is not None or self._settings["kind"] == "math"
        return Outcome(reply["reward"], reply["reason"], lasting, reply.get("value"))

    def _receive(self, pipe: Pipe, timeout_s: float) -> dict[str, Any]:
        """The next reply to the batch sent last, or word of a new checker; the audit hook's events are counted."""
        deadline = time.monotonic() + timeout_s
        while True:
            message: dict[str, Any] = pipe.receive(max(deadline - time.monotonic(), 0.0))
            if "ready" in message or message.get("batch") == self._batch:
                return message
            if "event" not in message:
                continue
            self.counts[f"audit_{message['event']}"] += 1
            if len(self.audited) < MAX_AUDITED_KEPT:
                self.audited.append(message["what"])

    def _end(self, job: Job, outcome: Outcome, count: str | None = None) -> None:
        if count is None and outcome.reward is None:
            count = "crashes" if outcome.reason.startswith("crash") else "undecided"
        self.counts["checks"] += 1
        if count:
            self.counts[count] += 1
        job.end(outcome)

    def _become_ready(self) -> bool:
        """Whether a checker waits for a batch, after starting what is missing."""
        while not self._stopping.is_set():
            if self._checker is not None:
                return True
            try:
                if self._process is None:
                    self._start_child()
                    if self._stopping.is_set():  # stop() may have come before there was a process to kill
                        break
                assert self._pipe is not None
                deadline = time.monotonic() + START_DEADLINE_S
                while self._checker is None:
                    message = self._receive(self._pipe, deadline - time.monotonic())
                    if "ready" in message:  # replies of a checker killed meanwhile are passed over
                        self._hello(message)
                self._failed_starts = 0
                return True
            except (PipeTimeout, PipeClosed, OSError):
                self._failed_starts += 1
                self.counts["failed_starts"] += 1
                if self._failed_starts >= MAX_FAILED_STARTS:
                    return False
                self._drop_child()
        return False

    def _start_child(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        env = {name: os.environ[name] for name in (*_KEPT_ENV, *_DATA_ENV) if name in os.environ}
        env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        env["OMP_NUM_THREADS"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "capo_ray.verifiers.child", json.dumps(self._settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._pipe = Pipe(self._process.stdout.fileno(), self._process.stdin.fileno())
        self.counts["starts"] += 1

    def _hello(self, message: dict[str, Any]) -> None:
        self._close_checker()
        self._pid, self._cpu_s = int(message["ready"]), float(message["cpu"])
        self._checker = open_pid(self._pid)
        self.counts["checkers"] += 1

    def _kill_checker(self) -> None:
        if self._checker is not None:
            kill(self._checker)

    def _close_checker(self) -> None:
        if self._checker is not None:
            close_pid(self._checker)
        self._checker = None

    def _drop_child(self) -> None:
        """End the child and give back its process, pipes and descriptor."""
        self._kill_checker()
        self._close_checker()
        process, self._process, self._pipe = self._process, None, None
        if self._errors is not None and self._failed_starts == 0:
            self._errors.close()
            self._errors = None
        if process is not None:
            process.kill()
            process.wait(timeout=10)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def _why_lost(self) -> str:
        if self._stopping.is_set():
            return "the verifier pool was closed while it held this answer"
        kind = self._settings["kind"]
        whose = "environment" if kind == "environment" else "verifier"
        needed = {"environment": "its package is installed", "math": "math-verify is installed"}
        check = needed.get(kind, f"{self._settings['path']} can be imported")
        return (
            f"the {whose}'s child process did not start in {MAX_FAILED_STARTS} attempts of {START_DEADLINE_S:g} s "
            f"({self._last_error()}); check that {check} and {whose}.memory_mib suffices"
        )

    def _last_error(self) -> str:
        """The last line the child wrote to its standard error."""
        if self._errors is None:
            return "no message"
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"
