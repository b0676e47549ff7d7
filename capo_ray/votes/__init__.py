"""Votes: turns k critiques of a response into one weight per step, and knows when asking on cannot change it.

    S_1 .. S_n   the flagged steps (0-based) of the n valid critiques, in vote order; invalid ones abstain
    c_s          how many of them hold step s
    w_s          intersection: c = n | majority: c >= n/2 | union: c >= 1 | average: c/n | greedy: s in S_1

With no valid critique every weight is 0: the response keeps its outcome alone (2508.02298, eq. 1; abstention is ours).
"""

from capo_ray.votes.stopping import first_wave, is_decided
from capo_ray.votes.weights import VOTES, count_flags, majority_word, step_weights, voted_steps

__all__ = ["VOTES", "count_flags", "first_wave", "is_decided", "majority_word", "step_weights", "voted_steps"]
