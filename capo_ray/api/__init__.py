"""The library: what the commands do, as functions of Python values. `import capo_ray` offers all of it lazily.

    capo_ray.train(config) -> Run                capo-ray train
    capo_ray.evaluate(config) -> Evaluation      capo-ray eval
    capo_ray.credit(groups, method)              capo-ray credit
    capo_ray.critique(solutions, config)         capo-ray critique
    capo_ray.verify(pairs)                       capo-ray verify

Invariants: there is no second path, every function calls what its command calls; every refusal and failure is a
`RunFailed` with one sentence; nothing is printed but the live screen of a run and notes on standard error.
"""

from capo_ray.api.judging import CreditedGroup, CreditedResponse, credit, critique, verify
from capo_ray.api.running import Evaluation, Run, compose, evaluate, train
from capo_ray.api.spelling import spell
from capo_ray.protocols import RunFailed

__all__ = [
    "CreditedGroup",
    "CreditedResponse",
    "Evaluation",
    "Run",
    "RunFailed",
    "compose",
    "credit",
    "critique",
    "evaluate",
    "spell",
    "train",
    "verify",
]
