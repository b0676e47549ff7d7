"""How well responses quote: against the sentences that are needed, where the reference solution says which."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from capo_ray.steps.quotes import needed, quoted, read_context
from capo_ray.types import Judged, Problem


def evidence_figures(problem: Problem, members: Sequence[Judged]) -> dict[str, float]:
    """Figures of valid responses to a question with a context; none where it has none.

    Precision is the mean of the responses that quote in format, recall that of all, 0 for one that does not. A lucky
    answer is right without quoting all that is needed.
    """
    sentences, _ = read_context(problem.prompt)
    if not sentences:
        return {}
    quotes = [quoted(member.trajectory.response.text, sentences) for member in members]
    told = [set(q) for q in quotes if q is not None]
    figures = {"credit/evidence_format_frac": len(told) / len(quotes)}
    gold = set(needed(problem.prompt, problem.solution))
    if not gold:
        return figures
    if told:
        figures["credit/evidence_precision_frac"] = fmean(len(q & gold) / len(q) for q in told)
    figures["credit/evidence_recall_frac"] = sum(len(q & gold) / len(gold) for q in told) / len(quotes)
    right = [set(q or ()) for q, member in zip(quotes, members, strict=True) if member.verdict.reward]
    if right:
        figures["credit/lucky_frac"] = fmean(not gold <= q for q in right)
    return figures
