"""Problems: where they come from, in which order, and how to come back to the same place.

    build_problems(config, seed) -> ProblemSet: .train (a ProblemSource), .held_out(n), .bad_rows

Invariants: a source restored from `state()` goes on with the problem that would have come next; no problem of `train`
is in `held_out`.
"""

from capo_ray.problems.assets import asset_path
from capo_ray.problems.chains import ChainProblem
from capo_ray.problems.curriculum import Curriculum
from capo_ray.problems.files import data_files
from capo_ray.problems.rows import reads_hub
from capo_ray.problems.saved import read_problem
from capo_ray.problems.sources import ProblemSet, build_problems
from capo_ray.problems.streams import ProblemSource
from capo_ray.problems.truth import true_wrong_steps, unasked_steps
from capo_ray.problems.words import WordProblem

__all__ = [
    "ChainProblem",
    "Curriculum",
    "ProblemSet",
    "ProblemSource",
    "WordProblem",
    "asset_path",
    "build_problems",
    "data_files",
    "read_problem",
    "reads_hub",
    "true_wrong_steps",
    "unasked_steps",
]
