"""Transcripts: what the policy wrote, what the judges said and what each token got for it, one line per group.

    {"head": what a list of groups shows, "update", "id", "question", "answer", "responses": [...]}

Rows of tokens have all T of them; in a response of several turns `acted` has the spans that the policy sampled, and the
tokens between them have zeros. A line is one of `capo-ray credit`: its evidence can be credited again, by any method
that reads it. It begins with `head`, so that a reader of many groups need not parse their texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from capo_ray.arrays import Runs
from capo_ray.metrics.rows import keep_rows, to_line, to_plain
from capo_ray.protocols import RunFailed
from capo_ray.types import Critique, Group, GroupCredit, Judged, Watched
from capo_ray.votes import majority_word

NOTHING: Watched = {}


class TranscriptWriter:
    """Appends groups to a JSONL file; with `resume_from` = v, lines of updates > v are cut away first.

    `show` gets each line as well, once it is written.
    """

    def __init__(
        self, path: Path, resume_from: int | None = None, show: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        keep_rows(path, resume_from)
        self._path, self._show = path, show

    def write_group(self, update: int, group: Group, credit: GroupCredit, watched: Watched = NOTHING) -> None:
        """Append its line."""
        told = group_line(update, group, credit, watched)
        with self._path.open("ab") as file:
            file.write(to_line(told))
        if self._show is not None:
            self._show(told)


def group_line(update: int, group: Group, credit: GroupCredit, watched: Watched = NOTHING) -> dict[str, Any]:
    """The line of a group, of the credit that it was trained with in `update` and of what the learner said of it."""
    return {
        "head": _head(update, group),
        "update": update,
        "id": group.problem.id,
        "question": group.problem.prompt,
        "answer": group.problem.answer,
        "prompt_tokens": max((member.trajectory.question_tokens for member in group.members), default=0),
        **({"solution": group.problem.solution} if group.problem.solution else {}),  # which critics were shown
        "responses": [_response(group, credit, watched, i) for i in range(len(group.members))],
    }


def _head(update: int, group: Group) -> dict[str, Any]:
    votes = [[c for c in m.evidence.critiques if c.valid] for m in group.members]
    rewards = [m.verdict.reward for m in group.members]
    return {
        "update": update,
        "group": group.id,
        "problem": group.problem.id,
        "rewards": rewards,
        "tokens": [m.num_tokens for m in group.members],
        "flagged_steps": sum(len(frozenset().union(*(c.flagged or () for c in row))) for row in votes),
        "split_steps": sum(map(_split, votes)),
        "against_verifier": sum(
            majority_word(row) not in (None, bool(r)) for row, r in zip(votes, rewards, strict=True)
        ),
    }


def _split(votes: list[Critique]) -> int:
    """The steps on which valid votes differ."""
    flags = [c.flagged or frozenset() for c in votes]
    return len(frozenset().union(*flags) - frozenset.intersection(*flags)) if flags else 0


def _response(group: Group, credit: GroupCredit, watched: Watched, index: int) -> dict[str, Any]:
    member = group.members[index]
    key, response, verdict = member.trajectory.key, member.trajectory.response, member.verdict
    turns = {"acted": [list(span) for span in response.acted]} if response.acted else {}
    return {
        "sample": key.sample,
        "attempt": key.attempt,
        "text": response.text,
        "tokens": _token_texts(member),
        **turns,
        "logprobs": _numbers(response.over_tokens(response.logprobs)),
        **{name: _rounded(response.over_tokens(row)) for name, row in watched.get(key, {}).items()},
        "versions": [[run.version, run.end] for run in response.versions],
        "finish": response.finish,
        "steps": [list(span) for span in member.steps],
        "reward": verdict.reward,
        "reason": verdict.reason,
        "extracted": verdict.extracted,
        **_evidence(member),
        "credit": {
            "advantages": _over_tokens(member, credit.advantages[index]),
            "token_rewards": _over_tokens(member, credit.token_rewards[index]),
            "step_weights": _numbers(credit.step_weights[index]),
            "valid_critiques": credit.valid_critiques[index],
            "included": credit.included[index],
        },
    }


def _evidence(member: Judged) -> dict[str, Any]:
    """What was gathered, each kind as the lines of `capo-ray credit` have it."""
    evidence, votes = member.evidence, member.evidence.critiques
    found: dict[str, Any] = {name: _plain(value, name) for name, value in evidence.more.items()}
    if votes:
        found["flagged"] = [None if c.flagged is None else sorted(c.flagged) for c in votes]
        found["overall"] = [c.overall for c in votes]
        found["votes"] = [{"by": c.provenance.model, "text": c.text, "reason": c.reason} for c in votes]
    for name in ("answer_logprobs", "step_values"):
        if len(values := getattr(evidence, name)):
            found[name] = _numbers(values)
    for name in ("token_rewards", "entropies", "hint_gains"):
        if len(values := getattr(evidence, name)):
            found[name] = _numbers(member.trajectory.response.over_tokens(values))
    return found


def _plain(value: Any, name: str) -> Any:
    """What a source of another package found, as JSON has it: arrays as lists, what is not finite as null."""
    if value is None or isinstance(value, str | bool):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), name)
    if isinstance(value, Mapping):
        return {str(key): _plain(one, name) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, name) for one in value]
    if isinstance(value, int | float):
        return to_plain(value)
    raise RunFailed(
        f"Evidence.more[{name!r}] must hold numbers, texts, arrays and lists of them, since transcripts keep it (got "
        f"{type(value).__name__})"
    )


def _over_tokens(member: Judged, row: Runs) -> list[float | int | None]:
    """[T]: 0 where the policy read."""
    response = member.trajectory.response
    return _numbers(response.over_tokens(row.expand()) if response.acted else row)


def _numbers(values: npt.ArrayLike) -> list[float | int | None]:
    return [to_plain(x) for x in values]  # type: ignore[union-attr]


def _rounded(values: npt.ArrayLike) -> list[float | int | None]:
    """For people to look at: no method reads them."""
    return _numbers(np.round(np.asarray(values, np.float64), 4))


def _token_texts(member: Judged) -> list[str]:
    """[T]: the characters that each token contributes; together they are the text, and no tokenizer is asked."""
    text, ends = member.trajectory.response.text, member.trajectory.response.char_ends.tolist()
    ends[-1:] = [len(text)] if ends else []  # characters that no token completed stand with the last
    return [text[start:end] for start, end in pairwise((0, *ends))]
