"""The figures of `capo-ray critique`: what critics said, how far they agree, how good they are where truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capo_ray.cli.critique_layouts import Solution
from capo_ray.critics.quality import first_error_accuracy, fleiss_kappa, step_quality, vote_agreement
from capo_ray.types import Critique
from capo_ray.votes import VOTES, step_weights

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One solution and the critiques of it."""

    solution: Solution
    critiques: tuple[Critique, ...]

    @property
    def num_labelled(self) -> int:
        """Steps of which it is known whether they are wrong."""
        labelled = self.solution.num_labelled
        return len(self.solution.steps) if labelled is None else labelled

    def voted(self, k: int, vote: str) -> frozenset[int] | None:
        """The steps held to be wrong by a vote over the first k critiques (weight >= 1/2); None: no valid one."""
        valid = [c.flagged for c in self.critiques[:k] if c.flagged is not None]
        if not valid:
            return None
        weights = step_weights(valid, len(self.solution.steps), vote)
        return frozenset(step for step, weight in enumerate(weights) if weight >= 0.5)


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
    """Quality of the vote for k = 1, 2, 4 … and each rule, on the responses whose wrong steps are known.

    A response without a valid critique counts as one in which nothing is flagged: that is what training makes of it.
    Steps that nobody labelled count neither way.
    """
    known = [(j, t) for j, t in zip(judgements, truth, strict=True) if t is not None]
    wrong = [t for _, t in known]
    counts = [j.num_labelled for j, _ in known]
    ks = sorted({k for k in (1, 2, 4, 8, 16, max_k) if k <= max_k})
    rows = []
    for k in ks:
        for vote in [v for v in VOTES if v != "greedy"] if k > 1 else ["one critique"]:
            voted = [(j, j.voted(k, "union" if k == 1 else vote) or frozenset[int]()) for j, _ in known]
            flagged = [frozenset(step for step in steps if step < j.num_labelled) for j, steps in voted]
            quality = step_quality(flagged, wrong, counts)
            on_bad, on_good, f1 = first_error_accuracy(flagged, wrong)
            rows.append(
                {
                    "k": k,
                    "vote": vote,
                    "responses": len(known),
                    "precision": quality.precision,
                    "recall": quality.recall,
                    "f1": quality.f1,
                    "first_error_bad": on_bad,
                    "first_error_good": on_good,
                    "first_error_f1": f1,
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
