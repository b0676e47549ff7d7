"""What type checkers know of the package; `__init__.py` brings the same names when they are first used."""

from capo_ray.api import CreditedGroup as CreditedGroup
from capo_ray.api import CreditedResponse as CreditedResponse
from capo_ray.api import Evaluation as Evaluation
from capo_ray.api import Run as Run
from capo_ray.api import RunFailed as RunFailed
from capo_ray.api import compose as compose
from capo_ray.api import credit as credit
from capo_ray.api import critique as critique
from capo_ray.api import evaluate as evaluate
from capo_ray.api import spell as spell
from capo_ray.api import train as train
from capo_ray.api import verify as verify

__version__: str
__all__: list[str]
