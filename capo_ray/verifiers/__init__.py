"""Verdicts on final answers, from killable child processes: a hang is a verdict, not an exception.

    verify(answer, responses)
      └─ VerifierPool (parent): extract → refuse → cache → fast path          any thread, any event loop
           └─ Lane (a thread): deadline per pair, kill, replace
                └─ child (`python -m capo_ray.verifiers.child`): math-verify imported once, then forks
                     └─ checker: memory and CPU limits, length-prefixed JSON over pipes; the one that is killed

Invariant: every response gets exactly one verdict, in order, within `verifier.deadline_s`; what could not be decided
(time-out, crash, refusal) is invalid, never 0.
"""

from typing import TYPE_CHECKING

from capo_ray.imports import on_demand

if TYPE_CHECKING:
    from capo_ray.verifiers.pool import VerifierPool

__all__ = ["VerifierPool"]
__getattr__ = on_demand(__name__, "pool")  # a child imports this room too, and what it imports delays it
