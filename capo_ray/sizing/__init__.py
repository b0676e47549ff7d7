"""What a run takes, by arithmetic: bytes of learner ranks and engines, GPUs of a cluster, seconds of an update.

Numbers in, numbers out: no model library, no device and no cluster is touched (`gpus` asks nvidia-smi).
"""

from capo_ray.sizing.adapters import AdapterLoad
from capo_ray.sizing.bytes import Term, total
from capo_ray.sizing.engine import EngineLoad, engine_terms, kv_bytes_per_token
from capo_ray.sizing.learner import learner_terms
from capo_ray.sizing.load import LearnerLoad
from capo_ray.sizing.nodes import pack
from capo_ray.sizing.oddities import KNOWN_LAYERS, odd_head, odd_layers
from capo_ray.sizing.offload import offloaded_terms
from capo_ray.sizing.publish import shm_bytes, store_bytes, transfer_deadline_s
from capo_ray.sizing.shapes import Shape, known_shape, shape_of, unshared_heads

__all__ = [
    "KNOWN_LAYERS",
    "AdapterLoad",
    "EngineLoad",
    "LearnerLoad",
    "Shape",
    "Term",
    "engine_terms",
    "known_shape",
    "kv_bytes_per_token",
    "learner_terms",
    "odd_head",
    "odd_layers",
    "offloaded_terms",
    "pack",
    "shape_of",
    "shm_bytes",
    "store_bytes",
    "total",
    "transfer_deadline_s",
    "unshared_heads",
]
