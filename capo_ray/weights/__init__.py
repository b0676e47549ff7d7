"""Weights in transit: one flat payload and a manifest that proves it. Pure: neither vLLM nor Ray.

    learner --PayloadWriter--> WeightsHandle(version, manifest, payload, fingerprint)
                                    --verify_handle--> manifest --iterate_tensors--> engine --canary--> serves

Invariant: an engine loads only what `verify_handle` compared, byte by byte, with the fingerprint that the sender gave
the driver; whatever does not fit raises `WeightsRefused`, and an engine that refused serves nothing until good ones
arrive.

Importing this room does not import torch: a driver, which holds no weights, does without.
"""

from typing import TYPE_CHECKING

from capo_ray.imports import on_demand
from capo_ray.weights.canary import START, Apart, Canary, Held, WeightsRefused, allowance, apart
from capo_ray.weights.checkpoint import checkpoint_files, checkpoint_shapes, publish_bytes
from capo_ray.weights.manifest import Manifest, Onto, TensorEntry, read_manifest
from capo_ray.weights.meeting import Backend, Meeting, WireLost

if TYPE_CHECKING:
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
    from capo_ray.weights.members import Seat
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

__getattr__ = on_demand(__name__, "contents", "payload", "writer", "transport", "members", "collective")

__all__ = [
    "START",
    "TIED",
    "AdaptersAlone",
    "Apart",
    "Backend",
    "Canary",
    "CollectiveReceiver",
    "CollectiveSender",
    "Contents",
    "Found",
    "Held",
    "HostReceiver",
    "Manifest",
    "MappedFiles",
    "Meeting",
    "Onto",
    "PayloadWriter",
    "Receiver",
    "Seat",
    "Sender",
    "TensorEntry",
    "WeightsRefused",
    "WholeModel",
    "WireLost",
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
