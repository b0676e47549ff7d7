"""Weights in transit: one flat payload and a manifest that proves it. Pure: neither vLLM nor Ray.

    learner --PayloadWriter--> WeightsHandle(version, manifest, payload, fingerprint)
                                    --verify_handle--> manifest --iterate_tensors--> engine --canary--> serves

Invariant: an engine loads only what `verify_handle` compared, byte by byte, with the fingerprint that the sender gave
the driver; whatever does not fit raises `WeightsRefused`, and an engine that refused serves nothing until good ones
arrive.
"""

from capo_ray.weights.canary import START, Apart, Canary, Held, WeightsRefused, allowance, apart
from capo_ray.weights.checkpoint import checkpoint_files, checkpoint_shapes, publish_bytes
from capo_ray.weights.collective import CollectiveReceiver, CollectiveSender
from capo_ray.weights.contents import (
    TIED,
    AdaptersAlone,
    Contents,
    MappedFiles,
    WholeModel,
    adapter_bytes,
    base_fingerprint,
    merged,
    pair_names,
)
from capo_ray.weights.manifest import Manifest, Onto, TensorEntry, read_manifest
from capo_ray.weights.payload import (
    Found,
    HostReceiver,
    as_bytes,
    checksums,
    iterate_tensors,
    verify_handle,
)
from capo_ray.weights.transport import Receiver, Sender
from capo_ray.weights.writer import PayloadWriter, Witness, build_handle, require_finite

__all__ = [
    "START",
    "TIED",
    "AdaptersAlone",
    "Apart",
    "Canary",
    "CollectiveReceiver",
    "CollectiveSender",
    "Contents",
    "Found",
    "Held",
    "HostReceiver",
    "Manifest",
    "MappedFiles",
    "Onto",
    "PayloadWriter",
    "Receiver",
    "Sender",
    "TensorEntry",
    "WeightsRefused",
    "WholeModel",
    "Witness",
    "adapter_bytes",
    "allowance",
    "apart",
    "as_bytes",
    "base_fingerprint",
    "build_handle",
    "checkpoint_files",
    "checkpoint_shapes",
    "checksums",
    "iterate_tensors",
    "merged",
    "pair_names",
    "publish_bytes",
    "read_manifest",
    "require_finite",
    "verify_handle",
]
