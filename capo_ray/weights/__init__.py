"""Weights in transit: one flat payload and a manifest that proves it. Pure: neither vLLM nor Ray.

    learner --build_handle--> WeightsHandle(version, manifest, payload) --iterate_tensors--> engine

Invariant: a tensor leaves `iterate_tensors` only after its own checksum was compared; whatever does not fit raises
`WeightsRefused`, and an engine that refused weights serves nothing until good ones arrive.
"""

from capo_ray.weights.manifest import Canary, Manifest, TensorEntry, WeightsRefused, read_manifest
from capo_ray.weights.payload import as_bytes, build_handle, iterate_tensors, verify_handle

__all__ = [
    "Canary",
    "Manifest",
    "TensorEntry",
    "WeightsRefused",
    "as_bytes",
    "build_handle",
    "iterate_tensors",
    "read_manifest",
    "verify_handle",
]
