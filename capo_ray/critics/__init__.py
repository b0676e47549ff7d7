"""The critic tier: k votes on the steps of each response, for the price of little more than one.

    Judge            an LLM in an engine           CalculatorJudge  arithmetic, no model
    EndpointJudge    any OpenAI-compatible API      CanaryWatch      known wrong steps, every so often
    OracleJudge      the truth of made problems, with errors as asked
    EnsembleJudge    several side by side           GuardedStore     what was paid for once
    PatientJudge     any of these, outages waited out
    RuledJudge       any of these, beside a rule that needs no model
    build_judge      any of these, from the configuration

Invariant: a critique that failed is invalid and abstains, with its reason counted; it is never "no error".
"""

from capo_ray.critics.build import build_judge
from capo_ray.critics.calculator import CalculatorJudge, calculate
from capo_ray.critics.canary import CanaryCase, CanaryReport, CanaryWatch, judge_canaries, load_cases
from capo_ray.critics.ensemble import EnsembleJudge
from capo_ray.critics.judge import Judge
from capo_ray.critics.parse import parse_critique
from capo_ray.critics.ruled import RuledJudge
from capo_ray.critics.store import CritiqueStore

__all__ = [
    "CalculatorJudge",
    "CanaryCase",
    "CanaryReport",
    "CanaryWatch",
    "CritiqueStore",
    "EnsembleJudge",
    "Judge",
    "RuledJudge",
    "build_judge",
    "calculate",
    "judge_canaries",
    "load_cases",
    "parse_critique",
]
