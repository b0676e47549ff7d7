"""What the critic is asked, as text templates: `paper`, `every_step` (in our words) and `compact`, a bare layout."""

from capo_ray.prompts.rubrics.templates import RUBRICS, Rubric, load_rubric

__all__ = ["RUBRICS", "Rubric", "load_rubric"]
