"""Transcripts: what the policy wrote, what the judges said and what each token got for it, one line per trajectory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from capo_ray.metrics.rows import keep_rows, to_line, to_plain
from capo_ray.types import Group, GroupCredit, Judged


class TranscriptWriter:
    """Appends groups to a JSONL file; with `resume_from` = v, lines of updates > v are cut away first."""

    def __init__(self, path: Path, resume_from: int | None = None) -> None:
        keep_rows(path, resume_from)
        self._path = path

    def write_group(self, update: int, group: Group, credit: GroupCredit) -> None:
        """Append one line per member."""
        lines = []
        for i, member in enumerate(group.members):
            line = {"update": update, **_member_fields(group, member), "tokens": _token_texts(member)}
            line["credit"] = [to_plain(x) for x in credit.advantages[i]]
            line["token_rewards"] = [to_plain(x) for x in credit.token_rewards[i]]
            line["step_weights"] = [to_plain(x) for x in credit.step_weights[i]]
            line["included"] = credit.included[i]
            lines.append(to_line(line))
        with self._path.open("ab") as file:
            file.write(b"".join(lines))


def _token_texts(member: Judged) -> list[str]:
    """[T]: the characters that each token contributes; together they are the text, and no tokenizer is asked."""
    text, ends = member.trajectory.response.text, member.trajectory.response.char_ends.tolist()
    return [text[start:end] for start, end in pairwise((0, *ends))]


def _member_fields(group: Group, member: Judged) -> dict[str, Any]:
    key, response, verdict = member.trajectory.key, member.trajectory.response, member.verdict
    votes = [
        {
            "flagged": None if critique.flagged is None else sorted(critique.flagged),
            "overall": critique.overall,
            "text": critique.text,
            "reason": critique.reason,
        }
        for critique in member.evidence.critiques
    ]
    return {
        "problem": group.problem.id,
        "group": key.group,
        "sample": key.sample,
        "attempt": key.attempt,
        "question": group.problem.prompt,
        "answer": group.problem.answer,
        "response": response.text,
        "finish": response.finish,
        "steps": [list(span) for span in member.steps],
        "verdict": {"reward": verdict.reward, "reason": verdict.reason, "extracted": verdict.extracted},
        "votes": votes,
    }
