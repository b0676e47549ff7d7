"""The trust gate: a critic is measured on solutions whose wrong steps are known before a policy is trained by it.

labelled solutions -> the run's own critic, k votes, its vote -> ProcessBench's F1 >= critic.min_f1 ? go : refused
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from capo_ray.critics.canary import load_cases
from capo_ray.critics.judgement import Judgement, Quality, vote_quality
from capo_ray.critics.layouts import Solution
from capo_ray.protocols import Judge, JudgeRequest, PartLost, PartTimeout

AT_ONCE = 16
"""Solutions under way at once: few, so that none is late for having waited behind the others."""


def shipped_solutions(rubric: str) -> list[Solution]:
    """The solutions with known wrong steps that the package has for a rubric."""
    cases = load_cases("", rubric)
    return [Solution(n, "shipped", c.problem, c.steps, c.wrong, None) for n, c in enumerate(cases, start=1)]


async def judge_labelled(judge: Judge, solutions: Sequence[Solution], num_votes: int) -> list[Judgement]:
    """The critiques of each solution; none of one that was lost or late."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def critique(solution: Solution) -> Judgement:
        async with slots:
            try:
                (critiques,) = await judge.critique(solution.problem, [JudgeRequest(solution.steps)], num_votes)
            except (PartTimeout, PartLost):
                critiques = ()
        return Judgement(solution, critiques)

    return list(await asyncio.gather(*map(critique, solutions)))


def trust_quality(judgements: Sequence[Judgement], vote: str) -> Quality:
    """How good the vote over all critiques is."""
    truth = [j.solution.wrong or frozenset() for j in judgements]
    return vote_quality(judgements, truth, max((len(j.critiques) for j in judgements), default=0), vote)


def to_words(quality: Quality, judgements: Sequence[Judgement]) -> str:
    """The figures in one clause."""
    first, steps = quality.first, quality.steps
    low, high = first.f1_ci95
    words = (
        f"{first.f1:.3f} [{low:.3f}, {high:.3f}]: first error found in {first.found} of {first.num_bad} wrong "
        f"solutions, {first.passed} of {first.num_good} right ones passed, step precision {steps.precision:.2f}, "
        f"recall {steps.recall:.2f}"
    )
    if quality.num_unread:
        reasons = Counter(c.reason for j in judgements for c in j.critiques if not c.valid)
        why = f" (most often: {reasons.most_common(1)[0][0]})" if reasons else ""
        words += f", {quality.num_unread} without a critique that could be read{why}"
    return words
