"""The figures of `capo-ray critique`: what critics said, how far they agree, how good they are where truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from capo_ray.config.credit import asks_once
from capo_ray.critics.judgement import Judgement, vote_quality
from capo_ray.critics.quality import fleiss_kappa, vote_agreement
from capo_ray.votes import VOTES

Row = dict[str, Any]


def summary(judgements: Sequence[Judgement], wall_s: float) -> Row:
    """Counts, agreement and cost over all solutions."""
    critiques = [c for j in judgements for c in j.critiques]
    fresh = [c.provenance for c in critiques if not c.provenance.cached]
    valid = [[c.flagged for c in j.critiques if c.flagged is not None] for j in judgements]
    counts = [len(j.solution.steps) for j in judgements]
    agreements = [vote_agreement(v, k) for v, k in zip(valid, counts, strict=True)]
    prompt_tokens = sum(max((c.provenance.prompt_tokens for c in j.critiques if not c.provenance.cached), default=0)
                        for j in judgements)  # fmt: skip
    return {
        "responses": len(judgements),
        "steps": sum(counts),
        "critiques": len(critiques),
        "invalid_frac": _share(sum(not c.valid for c in critiques), len(critiques)),
        "responses_without_valid": sum(not v for v in valid),
        "agreement": _mean([a for a in agreements if not math.isnan(a)]),
        "fleiss_kappa": fleiss_kappa(list(zip(valid, counts, strict=True))),
        "from_store": len(critiques) - len(fresh),
        "prompt_tokens": prompt_tokens,
        "output_tokens": sum(p.output_tokens for p in fresh),
        "critique_s": _mean([p.seconds for p in fresh if p.seconds]),
        "wall_s": wall_s,
    }


def by_source(judgements: Sequence[Judgement], vote: str) -> list[Row]:
    """Per source of solutions: how many are judged, how often a step is flagged, beside the answers' correctness."""
    rows = []
    for source in dict.fromkeys(j.solution.source for j in judgements):
        mine = [j for j in judgements if j.solution.source == source]
        voted = [(j, flagged) for j in mine if (flagged := j.voted(len(j.critiques), vote)) is not None]
        row: Row = {"source": source or "all", "responses": len(mine), "judged": len(voted)}
        row["steps"] = sum(len(j.solution.steps) for j, _ in voted)
        row["flagged_steps"] = sum(len(f) for _, f in voted)
        row["flagged"] = _share(sum(bool(f) for _, f in voted), len(voted))
        for name, known in (("flagged_if_right", True), ("flagged_if_wrong", False)):
            part = [f for j, f in voted if j.solution.right_answer is known]
            row[name] = _share(sum(bool(f) for f in part), len(part))
        rows.append(row)
    return rows


def against_truth(judgements: Sequence[Judgement], truth: Sequence[frozenset[int] | None], max_k: int) -> list[Row]:
    """Quality of the vote for k = 1, 2, 4 … and each rule, on the responses whose wrong steps are known."""
    known = [(j, t) for j, t in zip(judgements, truth, strict=True) if t is not None]
    judged, wrong = [j for j, _ in known], [t for _, t in known]
    ks = sorted({k for k in (1, 2, 4, 8, 16, max_k) if k <= max_k})
    rows = []
    for k in ks:
        tokens = sum(c.provenance.output_tokens for j in judged for c in j.critiques[:k])
        for vote in [v for v in VOTES if not asks_once(v)] if k > 1 else ["one critique"]:
            quality = vote_quality(judged, wrong, k, "union" if k == 1 else vote)
            low, high = quality.first.f1_ci95
            rows.append(
                {
                    "k": k,
                    "vote": vote,
                    "responses": len(known),
                    "unread": quality.num_unread,
                    "precision": quality.steps.precision,
                    "recall": quality.steps.recall,
                    "f1": quality.steps.f1,
                    "first_error_bad": quality.first.on_bad,
                    "first_error_good": quality.first.on_good,
                    "first_error_f1": quality.first.f1,
                    "f1_low": low,
                    "f1_high": high,
                    "output_tokens": tokens,
                }
            )
    return rows


def to_text(rows: Sequence[Row]) -> str:
    """Rows as an aligned table."""
    if not rows:
        return "(nothing)"
    names = list(rows[0])
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def finite(row: Row) -> Row:
    """The row with nan as None, for JSON."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
