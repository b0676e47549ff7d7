"""The parent's side: extraction, house rules, cache and fast path, then the children for what is left.

Usable from any thread and event loop at once. Nothing waits for the children unless a pair needs them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from capo_ray import answers
from capo_ray.protocols import PartLost
from capo_ray.types import Verdict
from capo_ray.verifiers.jobs import WALL_FACTOR, Job, Limit, Outcome
from capo_ray.verifiers.lane import Lane

if TYPE_CHECKING:
    from capo_ray.config.sections import VerifierConfig

CLOSE_DEADLINE_S = 5.0
LONG_RESPONSE_CHARS = 16_384
QUICK_CPU_S = 0.15  # several times what an ordinary check takes
NO_REFERENCE = Outcome(None, "undecided: the reference is empty, so nothing can be right")
NO_ANSWERS = frozenset({"", "none", "nan", "null"})
RIGHT, WRONG = Outcome(1, "right"), Outcome(0, "wrong")
NO_ANSWER = Outcome(0, "no answer")
TOO_LONG = Outcome(0, f"wrong: longer than {answers.MAX_ANSWER_CHARS} characters")
LATE = Outcome(None, "timeout: the group's deadline passed before this check")
Key = tuple[str, str]


class VerifierPool:
    """A `protocols.Verifier`; `start()` returns at once, `close()` kills the children."""

    def __init__(self, config: VerifierConfig) -> None:
        self._config, self._function = config, config.function
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._suspects: SimpleQueue[Job | None] = SimpleQueue()
        self._settings: dict[str, Any] = {}
        self._lanes: list[Lane] = []
        self._slow_lane: Lane | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._known: OrderedDict[Key, Outcome] = OrderedDict()
        self._running: dict[Key, Job] = {}
        self._counts: Counter[str] = Counter()

    def start(self) -> None:
        """Start the children in the background, once; kinds that compare text alone have none."""
        with self._lock:
            if self._closed:
                raise PartLost("the verifier pool is closed; make a new one")
            if self._lanes or not (self._function or self._config.kind == "math"):
                return
            count = self._config.num_processes
            settings: dict[str, Any] = {
                "kind": self._config.kind,
                "path": self._function,
                "timeout_s": self._config.timeout_s,
                "memory_mib": self._config.memory_mib,
                "checks": self._config.checks_per_process,
                "ordinary_cpu_s": min(QUICK_CPU_S, self._config.timeout_s / 4),
            }
            self._settings = settings
            limit, suspects = Limit.of_function(self._config.timeout_s), None
            if self._config.kind == "math":
                limit = Limit(WALL_FACTOR * self._config.timeout_s, settings["ordinary_cpu_s"])
                suspects = self._hold_apart
            self._lanes = [
                Lane(f"verifier-{index}", settings, self._jobs, limit, count, suspects) for index in range(count)
            ]
            for lane in self._lanes:
                lane.start()

    def _hold_apart(self, job: Job) -> None:
        """Give a pair that takes long to the lane of such pairs; its child is started with the first of them."""
        with self._lock:
            if self._slow_lane is None and not self._closed:
                limit = Limit(WALL_FACTOR * self._config.timeout_s, self._config.timeout_s)
                self._slow_lane = Lane("verifier-slow", self._settings, self._suspects, limit)
                self._lanes.append(self._slow_lane)
                self._slow_lane.start()
        self._suspects.put(job)

    def close(self) -> None:
        """Kill the children and end what they held as lost; may be called twice."""
        with self._lock:
            self._closed = True
            lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.stop()
        for lane in lanes:
            lane.join(CLOSE_DEADLINE_S)
        with self._lock:
            left = [job for job in self._running.values() if not job.future.done()]
        for job in left:
            job.lose(PartLost("the verifier pool was closed while it held this answer"))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def verify(self, answer: str, responses: Sequence[str]) -> tuple[Verdict, ...]:
        """One verdict per response, in order; raises `PartLost` only when no child starts or the pool is closed."""
        self.start()
        reference = answer if self._function else answers.reference_answer(answer)
        settled: list[tuple[str | None, Outcome | Job]] = []
        for response in responses:
            settled.append(self._settle(reference, response))
            if len(response) > LONG_RESPONSE_CHARS:
                await asyncio.sleep(0)  # a megabyte of text must not hold up the loop's other guests
        jobs = {id(item): item for _, item in settled if isinstance(item, Job)}
        if jobs:
            await _all_done(jobs.values(), self._config.deadline_s)
        return tuple(self._verdict(extracted, item) for extracted, item in settled)

    def stats(self) -> dict[str, float]:
        """Counts since the start, by metric name."""
        with self._lock:
            counts, lanes = Counter(self._counts), list(self._lanes)
        for lane in lanes:
            counts.update(lane.counts)
        pairs = max(counts["pairs"], 1)
        return {
            "verifier/pairs_total": float(counts["pairs"]),
            "verifier/fast_frac": counts["fast"] / pairs,
            "verifier/cached_frac": counts["cached"] / pairs,
            "verifier/no_answer_frac": counts["no_answer"] / pairs,
            "verifier/invalid_total": float(counts["invalid"]),
            "verifier/checks_total": float(counts["checks"]),
            "verifier/timeouts_total": float(counts["timeouts"]),
            "verifier/late_total": float(counts["late"]),
            "verifier/suspects_total": float(counts["suspects"]),
            "verifier/crashes_total": float(counts["crashes"]),
            "verifier/refused_total": float(counts["refused"]),
            "verifier/open_lanes": float(len(lanes)),
            "verifier/process_starts_total": float(counts["starts"]),
            "verifier/checker_starts_total": float(counts["checkers"]),
            "verifier/audit_events_total": float(sum(n for name, n in counts.items() if name.startswith("audit_"))),
            "verifier/slowest_check_s": max((lane.slowest_s for lane in lanes), default=0.0),
            "verifier/peak_mib": max((lane.peak_mib for lane in lanes), default=0.0),
            "verifier/cpu_s_total": sum(lane.cpu_s for lane in lanes),
            "verifier/busy_s_total": sum(lane.busy_s for lane in lanes),
            "verifier/up_s_total": sum(time.monotonic() - lane.began for lane in lanes),
            "verifier/queued_pairs": float(self._jobs.qsize() + self._suspects.qsize()),
        }

    def _settle(self, reference: str, response: str) -> tuple[str | None, Outcome | Job]:
        """The extracted answer of a response, and its outcome or the job that will bring it."""
        self._counts["pairs"] += 1
        if self._config.kind == "math" and reference.casefold() in NO_ANSWERS:
            return None, NO_REFERENCE
        if self._function:
            digest = blake2b(response.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
            return None, self._lookup((reference, digest), reference, response)
        if self._config.kind == "choice":
            return self._choose(reference, response)
        extracted = answers.extract_answer(response)
        if extracted is None:
            self._counts["no_answer"] += 1
            return None, NO_ANSWER
        if self._config.kind == "exact":
            self._counts["fast"] += 1
            return extracted, RIGHT if answers.exact_equal(reference, extracted) else WRONG
        if self._config.kind == "numeric":
            return extracted, self._measure(reference, extracted)
        return self._compare(reference, extracted)

    def _choose(self, reference: str, response: str) -> tuple[str | None, Outcome]:
        wanted = answers.choice_letter(reference)
        if wanted is None:
            return None, Outcome(None, f"undecided: the reference {reference[:40]!r} names no option")
        chosen, _ = answers.extract_choice(response)
        if chosen is not None and chosen.isdigit() != wanted.isdigit():
            chosen = None
        self._counts["fast" if chosen else "no_answer"] += 1
        return chosen, NO_ANSWER if chosen is None else (RIGHT if chosen == wanted else WRONG)

    def _measure(self, reference: str, extracted: str) -> Outcome:
        wanted, found = answers.number_of(reference), answers.number_of(extracted[: answers.MAX_ANSWER_CHARS])
        if wanted is None:
            return Outcome(None, f"undecided: the reference {reference[:40]!r} is no number")
        self._counts["fast"] += 1
        return RIGHT if found is not None and abs(found - wanted) <= self._config.tolerance * abs(wanted) else WRONG

    def _compare(self, reference: str, extracted: str) -> tuple[str, Outcome | Job]:
        """As `_settle`, for kind=math."""
        if len(extracted) > answers.MAX_ANSWER_CHARS:
            same = extracted == reference
            self._counts["fast"] += 1
            return extracted[: answers.MAX_ANSWER_CHARS], RIGHT if same else TOO_LONG
        quick = answers.fast_equal(reference, extracted)
        if quick is not None:
            self._counts["fast"] += 1
            return extracted, RIGHT if quick else WRONG
        normal, known = answers.normalise(extracted), answers.normalise(reference)
        if why := answers.refusal(normal, known):
            self._counts["refused"] += 1
            return extracted, Outcome(None, f"refused: {why}")
        return extracted, self._lookup((known, normal), reference, extracted)

    def _lookup(self, key: Key, reference: str, text: str) -> Outcome | Job:
        """A known outcome, the job that is already on its way, or a new one."""
        with self._lock:
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                self._counts["cached"] += 1
                return known
            job = self._running.get(key)
            if job is not None:
                self._counts["cached"] += 1
                return job
            job = self._running[key] = Job(reference, text)
        job.future.add_done_callback(lambda _: self._remember(key, job))
        self._jobs.put(job)
        return job

    def _remember(self, key: Key, job: Job) -> None:
        """Keep a lasting outcome; one that may have been bad luck is tried again when its pair comes back."""
        with self._lock:
            self._running.pop(key, None)
            if job.future.exception() is None and (outcome := job.future.result()).lasting:
                self._known[key] = outcome
                while len(self._known) > self._config.cache_entries:
                    self._known.popitem(last=False)

    def _verdict(self, extracted: str | None, item: Outcome | Job) -> Verdict:
        if isinstance(item, Job):
            outcome = item.future.result() if item.future.done() else LATE
        else:
            outcome = item
        if outcome.reward is None:
            self._counts["invalid"] += 1
        return Verdict(outcome.reward, outcome.reason, extracted)


async def _all_done(jobs: Iterable[Job], deadline_s: float) -> None:
    """Wait until every job has ended, at most `deadline_s`; the jobs go on whatever happens to the waiter."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    waiting = {id(job) for job in jobs}

    def ended(job: Job) -> None:
        waiting.discard(id(job))
        if not waiting:
            event.set()

    def tell(job: Job) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(ended, job)

    for job in list(jobs):
        job.future.add_done_callback(lambda _, job=job: tell(job))  # type: ignore[misc]
    with suppress(TimeoutError):  # the rest is late: an invalid verdict each
        await asyncio.wait_for(event.wait(), deadline_s)
