"""A critic that is down is waited for: groups keep their slots, one request at a time asks whether it is back.

answers --a group without a single vote--> outage --one response of one group, again and again--> answers
                                              `--after outage_budget_s--> the run ends with the critic's own words

Invariants
- While nothing is answered, no group goes on with its outcome alone; it waits, and so do all that come after it.
- A response that stays without an answer although the critic answers others is given up: the fault is its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from capo_ray.config.sections import CriticConfig
from capo_ray.critics.panel import FAILED, LATE, was_not_answered
from capo_ray.protocols import Judge, JudgeRequest, PartLost, PartTimeout, RunFailed
from capo_ray.types import Critique, Problem, Provenance

Votes = tuple[Critique, ...]
POLL_S = 0.25
FIRST_PROBE_S, LONGEST_WAIT_S = 1.0, 15.0
MAX_STRIKES, MAX_LATE = 5, 2
"""Times that a response may fail, and a whole group be late, while others are answered: the first time may have been
the beginning of an outage, before which another was just answered."""
_log = logging.getLogger(__name__)


class PatientJudge:
    """`protocols.Judge` over another one, whose outages it waits out; raises `RunFailed` past the budget."""

    def __init__(
        self,
        judge: Judge,
        config: CriticConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._judge, self._config, self._budget_s = judge, config, config.outage_budget_s
        self._clock, self._sleep = clock, sleep
        self._since: float | None = None
        self._failing: set[object] = set()
        self._reason = ""
        self._num_answers = self._num_failed_probes = 0
        self._probing, self._next_probe, self._wait_s = False, 0.0, FIRST_PROBE_S
        self._num_waiting = 0
        self._outage_s = 0.0
        self._counts = Counter({"outages": 0, "lost_groups": 0})

    async def critique(self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int) -> tuple[Votes, ...]:
        """The judge's critiques; a response that it does not answer while it answers others has invalid ones."""
        said: list[Votes | None] = [None] * len(responses)
        strikes, group = 0, object()
        while missing := [i for i, votes in enumerate(said) if votes is None]:
            probing = await self._admit()
            asked = missing[:1] if probing else missing
            began, answers_before = self._clock(), self._num_answers
            try:
                answer = await self._ask(problem, [responses[i] for i in asked], num_votes)
            finally:
                self._probing = self._probing and not probing
            unanswered = {i: votes for i, votes in zip(asked, answer, strict=True) if _is_unanswered(votes)}
            said = [said[i] if i not in asked or i in unanswered else answer[asked.index(i)] for i in range(len(said))]
            if len(unanswered) < len(asked):
                self._answered()
            else:
                self._failed(began, probing, next(iter(unanswered.values())))
                self._failing.add(group)
            if not unanswered or (self._num_answers == answers_before and self._is_outage(group, said)):
                continue
            strikes += 1
            for i, votes in unanswered.items():
                if not self._budget_s or strikes >= _most_strikes(votes, whole=len(unanswered) == len(asked)):
                    said[i] = votes
            if all(votes is not None for votes in said):
                self._counts["lost_groups"] += 1
            else:
                await self._sleep(min(LONGEST_WAIT_S, FIRST_PROBE_S * 2 ** (strikes - 1)))
        return tuple(votes for votes in said if votes is not None)

    def figures(self) -> dict[str, float]:
        """Outages and their seconds, groups that wait now, and groups given up."""
        ongoing = self._clock() - self._since if self._since is not None else 0.0
        return {
            "critic/outages_total": float(self._counts["outages"]),
            "critic/outage_s_total": self._outage_s + ongoing,
            "critic/waiting_groups": float(self._num_waiting),
            "critic/lost_groups_total": float(self._counts["lost_groups"]),
        }

    def _is_outage(self, group: object, said: Sequence[Votes | None]) -> bool:
        """Whether it is the critic that is at fault, and not what is left of a group of which it judged the rest."""
        alone = self._failing == {group} and any(votes is not None for votes in said)
        return self._budget_s > 0 and not alone

    async def _ask(self, problem: Problem, requests: Sequence[JudgeRequest], num_votes: int) -> Sequence[Votes]:
        try:
            return await self._judge.critique(problem, requests, num_votes)
        except (PartTimeout, PartLost) as error:
            lost = Critique(None, None, "", f"{LATE}: critic lost: {error}", Provenance(self._config.model, "", 0))
            return [(lost,)] * len(requests)

    async def _admit(self) -> bool:
        """Returns when the critic may be asked; whether it is to be asked for one response only, since it is down."""
        self._num_waiting += 1
        try:
            while self._since is not None:
                now = self._clock()
                if self._num_failed_probes and now - self._since >= self._budget_s:
                    raise self._over(now - self._since)
                if not self._probing and now >= self._next_probe:
                    self._probing = True
                    return True
                await self._sleep(POLL_S)
            return False
        finally:
            self._num_waiting -= 1

    def _answered(self) -> None:
        self._num_answers += 1
        self._failing.clear()
        if self._since is None:
            return
        lasted = self._clock() - self._since
        self._outage_s += lasted
        self._since, self._num_failed_probes, self._wait_s = None, 0, FIRST_PROBE_S
        _log.warning("the critic answers again, after %.0f s", lasted)

    def _failed(self, began: float, probing: bool, votes: Votes) -> None:
        """A try that began then brought nothing; what began before the last answer says nothing new."""
        if not self._budget_s:
            return
        self._reason = votes[0].reason.removeprefix(FAILED).removeprefix(f"{LATE}: ")
        now = self._clock()
        if self._since is None:
            self._since, self._next_probe = began, now + self._wait_s
            self._counts["outages"] += 1
            _log.warning(
                "the critic does not answer (%s); groups wait for it, at most critic.outage_budget_s=%g s",
                self._reason, self._budget_s,
            )  # fmt: skip
        elif probing:
            self._num_failed_probes += 1
            self._wait_s = min(LONGEST_WAIT_S, 2 * self._wait_s)
            self._next_probe = now + self._wait_s

    def _over(self, seconds: float) -> RunFailed:
        return RunFailed(
            f"expected the critic to answer again within critic.outage_budget_s={self._budget_s:g}, got nothing for "
            f"{seconds:.0f} s and {self._num_failed_probes + 1} tries, the last with: {self._reason}; see to "
            f"{self._name()} and go on with resume=, or raise critic.outage_budget_s"
        )

    def _name(self) -> str:
        config = self._config
        return config.endpoint.base_url if config.backend == "endpoint" else f"critic.model={config.model}"


def _is_unanswered(votes: Votes) -> bool:
    return bool(votes) and all(was_not_answered(critique) for critique in votes)


def _most_strikes(votes: Votes, *, whole: bool) -> int:
    """How often this may happen; what is late beside answered siblings is not waited for again."""
    if not votes[0].reason.startswith(LATE):
        return MAX_STRIKES
    return MAX_LATE if whole else 1
