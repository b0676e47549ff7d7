"""What `capo-ray eval` shows: the table and Markdown row of an evaluation, the comparison of two, and its progress."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from capo_ray.cli.critique_table import to_text
from capo_ray.evaluation import Comparison, compare
from capo_ray.flow.answering import ResponseFile, problem_scores

EVERY_S = 5.0
MEANS = ("greedy_accuracy", "avg_at_k", "pass_at_k", "majority_at_k")
Figures = Mapping[str, Any]


class EvalProgress:
    """How far the suites are, on standard error: at most a line every `EVERY_S`, on a terminal in place."""

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._totals, self._done = totals, Counter[str]()
        self._phase, self._shown, self._begun = "", 0.0, time.monotonic()
        self._live = sys.stderr.isatty()

    def tell(self, news: str) -> None:
        """A phase in words, or the name of a suite: first that it begins, then after each of its problems."""
        now, total = time.monotonic(), self._totals.get(news)
        begins = news != self._phase
        if begins:
            self._phase, self._begun = news, now
        elif total is not None:
            self._done[news] += 1
        if begins or now - self._shown > (EVERY_S / 10 if self._live else EVERY_S) or self._done[news] == total:
            self._shown = now
            self._print(news if total is None else self._line(news, total, now - self._begun))

    def _line(self, suite: str, total: int, seconds: float) -> str:
        done = self._done[suite]
        left = f", {seconds / done * (total - done):.0f} s to go" if 0 < done < total else ""
        return f"{suite}: {done} of {total} problems{left}"

    def _print(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self._live:
            sys.stderr.write("\n")


def table(suites: Mapping[str, Figures]) -> str:
    """One line for each suite; intervals are 95%."""
    return to_text([_table_row(name, figures) for name, figures in suites.items()])


def _table_row(name: str, told: Figures) -> dict[str, object]:
    k = told["num_samples"]
    heads = ("greedy", f"avg@{k}", f"pass@{k}", f"maj@{k}")
    return {
        "suite": name,
        "problems": told["num_problems"],
        **{head: _with_interval(told, mean) for head, mean in zip(heads, MEANS, strict=True)},
        "cut": told["truncated_frac"],
        "no answer": told["no_answer_frac"],
        "invalid": told["invalid_frac"],
        "tokens": round(told["mean_tokens"]),
        "tokens per s": round(told["tokens_per_s"]),
        "GPU s": round(told["gpu_s"]),
    }


def _with_interval(told: Figures, mean: str, percent: bool = False) -> str:
    if mean not in told:
        return "-"
    low, high = told[f"{mean}_ci95"]
    if percent:
        return f"{100 * told[mean]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{told[mean]:.3f} [{low:.3f}, {high:.3f}]"


def markdown(model: str, suites: Mapping[str, Figures]) -> str:
    """A table of one row: the model, and per cent with its interval for each suite; under it what was measured."""
    heads, cells = ["model"], [model]
    for name, told in suites.items():
        for mean, head in (("greedy_accuracy", "greedy"), ("avg_at_k", f"avg@{told['num_samples']}")):
            if mean in told:
                heads.append(f"{name} {head}")
                cells.append(_with_interval(told, mean, percent=True))
    rows = (heads, ["---"] * len(heads), cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def comparison(suites: Sequence[str], this: ResponseFile, other: ResponseFile) -> dict[str, dict[str, Any]]:
    """By suite, this evaluation less the other on the problems of both; sampled and greedy, if both have it."""
    found: dict[str, dict[str, Any]] = {}
    for suite in suites:
        pairs = zip(
            ("avg_at_k", "greedy_accuracy"), problem_scores(suite, other), problem_scores(suite, this), strict=True
        )
        told = {name: to_json(compare(first, second)) for name, first, second in pairs if first.keys() & second.keys()}
        if told:
            found[suite] = told
    return found


def to_json(one: Comparison) -> dict[str, Any]:
    """A comparison as JSON types."""
    return {
        "num_problems": one.num_problems,
        "difference": one.difference.value,
        "ci95": one.difference.ci95,
        "num_better": one.num_up,
        "num_worse": one.num_down,
        "p_value": one.p_value,
    }


def comparison_table(told: Mapping[str, Mapping[str, Any]], other: str) -> str:
    """The comparison as lines under a head."""
    rows: list[dict[str, object]] = [
        {
            "suite": suite,
            "of": name,
            "problems": one["num_problems"],
            "difference": f"{one['difference']:+.3f} [{one['ci95'][0]:+.3f}, {one['ci95'][1]:+.3f}]",
            "better": one["num_better"],
            "worse": one["num_worse"],
            "p (sign test)": one["p_value"],
        }
        for suite, by_name in told.items()
        for name, one in by_name.items()
    ]
    return f"against {other}, on the same problems:\n{to_text(rows)}"
