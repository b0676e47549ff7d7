"""Searches for a solution of one problem, by a policy that draws and a critic that judges. No Ray, no file.

    Asking(problem, writer, critic) --rule of the section--> Found

    sample      draw                                        majority    draw n, the commonest answer
    best_of_n   draw n, judge all, the fewest flags         navigator   draw a step, judge it, go on or take back

Invariants: every draw has a seed made from its number, so that a search repeats itself; what is drawn and judged is
counted where it is asked for, whatever becomes of it; the critic never sees a reference answer or solution.
"""

from capo_ray.search.asking import Asking, Critic, Found, Piece, Spent, Writer, look_for

__all__ = ["Asking", "Critic", "Found", "Piece", "Spent", "Writer", "look_for"]
