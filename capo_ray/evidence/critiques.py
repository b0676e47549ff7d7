"""The critics' votes on the steps of each response, as texts that were read, or as flagged steps on a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from capo_ray.config import TrainConfig
from capo_ray.config.credit import Critiques, asks_once
from capo_ray.credit import critiques_matter
from capo_ray.critics import parse_critique
from capo_ray.critics.outage import PatientJudge
from capo_ray.evidence.lines import FieldError, ResponseLine, refuse
from capo_ray.evidence.source import Doors, EvidenceSource
from capo_ray.protocols import JudgeRequest, step_texts
from capo_ray.types import Critique, Evidence, Judged, Problem, Provenance


class CritiqueSource(EvidenceSource):
    """`critic.num_votes` critiques of each response, none of groups that `critic.skip` leaves out."""

    stage = "critique"

    def __init__(self, asked: Critiques, doors: Doors) -> None:
        assert doors.judge is not None, "the credit rule reads critiques, so the run has a judge"
        self._config, self._ledger = doors.config, doors.ledger
        self._judge = PatientJudge(doors.judge, doors.config.critic)

    @classmethod
    def deadline_s(cls, config: TrainConfig) -> float:
        """For a second worker, to which a late group is sent, and for a tier that is down."""
        return config.critic.deadline_s + config.critic.outage_budget_s

    async def gather(self, problem: Problem, members: Sequence[Judged], progress: float) -> Sequence[Evidence] | None:
        """The votes that came back for each member."""
        critic, credit = self._config.critic, self._config.credit
        if critic.skip == "no_gradient" and not critiques_matter(members, credit, progress):
            return None
        requests = [
            JudgeRequest(step_texts(m.trajectory.response.text, m.trajectory.response.char_ends, m.steps))
            for m in members
        ]
        critiques = await self._judge.critique(problem, requests, critic.num_votes)
        return [Evidence(critiques=votes) for votes in critiques]

    def note(self, members: Sequence[Judged]) -> None:
        """In the ledger: the valid votes, of those that came back, of each member."""
        votes = [m.evidence.votes for m in members]
        self._ledger.record([m.trajectory.key for m in members], "critiqued", votes=votes)

    def figures(self) -> dict[str, float]:
        """How long critics were waited for."""
        return self._judge.figures()

    @classmethod
    def read(cls, line: ResponseLine, asked: Critiques | None) -> Evidence:
        """From raw texts or from flagged steps; an index that is no step makes a critique invalid."""
        item, where = line.item, line.where
        if "critiques" in item and "flagged" in item:
            raise FieldError(f"{where}.flagged: expected either critiques or flagged, got both")
        if "critiques" in item:
            texts = item["critiques"]
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                line.refuse("critiques", "a list of critic texts", texts)
            parsed = [parse_critique(text, len(line.steps), line.rubric) for text in texts]
            votes = (_critique(*said, text, i) for i, (said, text) in enumerate(zip(parsed, texts, strict=True)))
            return Evidence(critiques=tuple(votes))
        if "flagged" in item:
            return Evidence(critiques=_read_flags(line, asked))
        if line.wants(asked):
            raise FieldError(
                f"{where}.critiques: expected critiques (critic texts) or flagged (step indices), which "
                f"credit={line.method} reads, got neither"
            )
        return Evidence()


def quorum(config: TrainConfig) -> int:
    """The valid critiques that each response needs for its steps to count; 0 where none are read."""
    asked = config.credit.asked(Critiques)
    return asked.quorum if asked else 0


def votes_wanted(config: TrainConfig) -> int:
    """The most critiques of one response that are asked for."""
    asked = config.credit.asked(Critiques)
    return 1 if asked and asks_once(asked.vote) else config.critic.num_votes


def _read_flags(line: ResponseLine, asked: Critiques | None) -> tuple[Critique, ...]:
    flags = line.item["flagged"]
    if not isinstance(flags, list):
        line.refuse("flagged", "a list of one list of step indices per critique", flags)
    if line.valid and flags and asked is not None and asked.overall and "overall" not in line.item:
        words = f"{len(flags)} of true, false or null, which credit={line.method} reads beside flagged"
        line.refuse("overall", words, None)
    overall = line.item.get("overall", [None] * len(flags))
    told = isinstance(overall, list) and all(word is None or isinstance(word, bool) for word in overall)
    if not told or len(overall) != len(flags):
        line.refuse("overall", f"{len(flags)} of true, false or null", overall)
    return tuple(
        _from_flags(flag, word, len(line.steps), f"{line.where}.flagged[{i}]", i)
        for i, (flag, word) in enumerate(zip(flags, overall, strict=True))
    )


def _from_flags(flag: Any, word: bool | None, num_steps: int, where: str, index: int) -> Critique:
    if flag is None:
        return _critique(None, word, "invalid", "", index)
    if not isinstance(flag, list) or not all(isinstance(s, int) and not isinstance(s, bool) for s in flag):
        refuse(where, "a list of step indices, or null for an invalid critique", flag)
    outside = [step for step in flag if not 0 <= step < num_steps]
    if outside:
        return _critique(None, word, f"step {outside[0]} not in 0..{num_steps - 1}", "", index)
    return _critique(frozenset(flag), word, "", "", index)


def _critique(flagged: frozenset[int] | None, overall: bool | None, reason: str, text: str, index: int) -> Critique:
    return Critique(flagged, overall, text, reason, Provenance("offline", "", index))
