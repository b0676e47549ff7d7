"""The pipeline: groups walk alone, meet in a slot buffer, and are trained in batches of bounded age.

                 problems                                              publish
                     |                                                    ^
    admit -> roll out -> verify -> critique -> credit -> [finished] -> update
      ^                                                                   |
      +------------------- a slot is freed once engines hold it <---------+

The flow knows the doors of `protocols` only: no actor, no process, no device.
"""

from capo_ray.flow.evaluate import EvalReport, HeldOut
from capo_ray.flow.group import CreditedGroup, GroupWay
from capo_ray.flow.outcome import RunOutcome
from capo_ray.flow.parts import Parts
from capo_ray.flow.pipeline import Pipeline

__all__ = ["CreditedGroup", "EvalReport", "GroupWay", "HeldOut", "Parts", "Pipeline", "RunOutcome"]
