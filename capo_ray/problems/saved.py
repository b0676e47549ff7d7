"""Problems in the state of a run: fields as JSON gives them back, and again the problem whose steps have a truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capo_ray.problems.stories import Operation
from capo_ray.problems.words import WordProblem
from capo_ray.types import Problem


def read_problem(saved: Mapping[str, Any]) -> Problem:
    """The problem of which these are the fields (`dataclasses.asdict`); of a chain the prompt tells all there is."""
    if "operations" not in saved:
        return Problem(**saved)
    return WordProblem(**{**saved, "operations": tuple(Operation(*one) for one in saved["operations"])})
