"""What is known of the steps of a response to problems that are made on the spot: chains and word problems."""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.problems import chains, words
from capo_ray.types import Problem


def true_wrong_steps(problem: Problem, response_steps: Sequence[str]) -> frozenset[int]:
    """The 0-based indices of the wrong steps."""
    if isinstance(problem, words.WordProblem):
        return words.true_wrong_steps(problem, response_steps)
    return chains.true_wrong_steps(problem, response_steps)


def unasked_steps(problem: Problem, response_steps: Sequence[str]) -> frozenset[int]:
    """Those of them that a rule can tell from the question without arithmetic."""
    if isinstance(problem, words.WordProblem):
        return words.unasked_steps(problem, response_steps)
    return chains.unasked_steps(problem, response_steps)
