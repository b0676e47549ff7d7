"""Every knob of a run, once: name, default, unit and range. Pydantic models, nothing else; importing this is cheap."""

from typing import Any

from capo_ray.config.credit import CREDIT_METHODS, CreditConfig
from capo_ray.config.environment import ENVIRONMENTS
from capo_ray.config.families import Family
from capo_ray.config.sft import SftConfig
from capo_ray.config.steps import SEGMENTERS
from capo_ray.config.train import TrainConfig

Job = TrainConfig | SftConfig
"""The configuration of whatever trains on a cluster."""
FAMILIES: dict[str, Family[Any]] = {family.section: family for family in (CREDIT_METHODS, SEGMENTERS, ENVIRONMENTS)}
"""The sections of which there are several kinds."""

__all__ = [
    "CREDIT_METHODS",
    "ENVIRONMENTS",
    "FAMILIES",
    "SEGMENTERS",
    "CreditConfig",
    "Job",
    "SftConfig",
    "TrainConfig",
]
