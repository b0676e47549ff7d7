"""Every knob of a run, once: name, default, unit and range. Pydantic models, nothing else; importing this is cheap."""

from capo_ray.config.credit import CREDIT_METHODS, CreditConfig
from capo_ray.config.sft import SftConfig
from capo_ray.config.train import TrainConfig

Job = TrainConfig | SftConfig
"""The configuration of whatever trains on a cluster."""

__all__ = ["CREDIT_METHODS", "CreditConfig", "Job", "SftConfig", "TrainConfig"]
