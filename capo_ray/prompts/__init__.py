"""Prompts as token ids: trusted text and data go in by different doors, so that no text can give orders.

policy   system text, template, question            -> ids [P]
critic   rubric, question, reference | tagged steps  -> ids; the part before `|` is shared by a group's siblings
"""

from capo_ray.prompts.critic import Piece, build_critic_prompt, build_critic_text, critic_pieces
from capo_ray.prompts.escape import escape_data
from capo_ray.prompts.policy import build_policy_prompt, frame_question
from capo_ray.prompts.rubrics import RUBRICS, Rubric, load_rubric

__all__ = [
    "RUBRICS",
    "Piece",
    "Rubric",
    "build_critic_prompt",
    "build_critic_text",
    "build_policy_prompt",
    "critic_pieces",
    "escape_data",
    "frame_question",
    "load_rubric",
]
