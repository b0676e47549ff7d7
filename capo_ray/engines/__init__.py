"""Engines: language models that sample and score, and hold the weights of one version at a time.

    EngineSpec -> VllmEngine(spec).start() -> generate / stream / score / load_weights
    ApiConfig  -> ServedEngine(api, …).start() -> generate                for evaluations, a server elsewhere

Importing this room is cheap: torch is imported with `VllmEngine`, vLLM and transformers when an engine or a tokenizer
is made.
"""

from typing import TYPE_CHECKING

from capo_ray.engines.served import ServedEngine
from capo_ray.engines.spec import EngineSpec
from capo_ray.engines.stepper import EngineBroken
from capo_ray.engines.tokenizer import HfTokenizer, TokenizerRefused
from capo_ray.imports import on_demand

if TYPE_CHECKING:
    from capo_ray.engines.vllm_engine import VllmEngine

__all__ = ["EngineBroken", "EngineSpec", "HfTokenizer", "ServedEngine", "TokenizerRefused", "VllmEngine"]
__getattr__ = on_demand(__name__, "vllm_engine")
