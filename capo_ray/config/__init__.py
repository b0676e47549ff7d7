"""Every knob of a run, once: name, default, unit and range. Pydantic models, nothing else; importing this is cheap."""

from capo_ray.config.credit import CREDIT_METHODS, CreditConfig
from capo_ray.config.train import TrainConfig

__all__ = ["CREDIT_METHODS", "CreditConfig", "TrainConfig"]
