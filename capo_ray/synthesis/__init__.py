"""Problems made from problems: programs with other numbers, and the filters that decide what may be kept. No model.

    worked problem with <<a*b=c>> marks -> Program -> instance (other numbers, recomputed) -> Candidate -> Filters

Invariants: candidate i depends on the seed, i and the templates alone; arithmetic is exact and evaluates no code; what
is dropped is dropped by the first filter that refuses it, and counted there.
"""

from capo_ray.synthesis.candidates import Candidate, instance, instances, to_candidate
from capo_ray.synthesis.filters import FILTERS, Filters, Held, derived_agreement, plain_solution
from capo_ray.synthesis.programs import Instance, NoProgram, Program, instantiate, solve_again
from capo_ray.synthesis.prompts import PRINCIPLES, prompt, read_response
from capo_ray.synthesis.reading import read_program, read_programs

__all__ = [
    "FILTERS",
    "PRINCIPLES",
    "Candidate",
    "Filters",
    "Held",
    "Instance",
    "NoProgram",
    "Program",
    "derived_agreement",
    "instance",
    "instances",
    "instantiate",
    "plain_solution",
    "prompt",
    "read_program",
    "read_programs",
    "read_response",
    "solve_again",
    "to_candidate",
]
