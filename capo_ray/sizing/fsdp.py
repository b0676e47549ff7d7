"""The memory of FSDP2's ranks (learners/fsdp.py): equal parts of everything, and the units that a pass makes whole."""

from __future__ import annotations

from capo_ray.sizing.bytes import Term, split
from capo_ray.sizing.load import LearnerLoad

GPU_BASE_BYTES = 2 << 30  # CUDA context, NCCL, library workspaces and fragments: an allowance, not a count


def fsdp_states(load: LearnerLoad) -> list[Term]:
    """Weights (which are the masters, in fp32, where they are trained), moments and gradients, all in equal parts."""
    if load.offload:
        return []  # the weights too: they are the masters
    trained, ranks = load.num_trained, load.num_ranks
    terms = [split("masters", trained, 4, ranks, load.trained)]
    if load.adapters is not None:
        terms.insert(0, split("weights", load.num_params, load.unit, ranks))
    return [
        *terms,
        *(split(name, trained, each, ranks, load.trained) for name, each in (("moments", 8), ("gradients", 4))),
    ]


def fsdp_buffers(load: LearnerLoad) -> Term:
    """Embedding and head whole through a pass, two blocks at a time, and their gradients until they are dealt.

    Gradients are cast to fp32 in a copy as they are reduced: a block's after its backward pass, the others' at the end.
    """
    shape, unit = load.shape, load.unit
    outer = shape.vocab * shape.hidden * (1 if shape.tied else 2) + shape.hidden
    block = (load.num_params - outer) / shape.layers
    moved = block if load.adapters is None else load.num_trained / shape.layers
    parts = [(unit * (outer + 2 * block), f"{(outer + 2 * block) / 1e6:,.0f}M weights made whole")]
    if load.adapters is None:
        parts.append((unit * outer + max(4 * outer, (unit + 4) * moved), "gradients of embedding and head, in a copy"))
    else:
        parts.append(((unit + 4) * moved, "a block's gradients, in a copy"))
    if load.offload:  # rows as the host has them and their cast; gradients that go there
        most, each = max(outer, 2 * block) / load.num_ranks, 8 + unit % 4 if load.adapters is None else unit
        parts.append((each * most, f"{each} B x {most / 1e6:,.0f}M to and from the host"))
    if load.on_gpu:
        parts.append((GPU_BASE_BYTES, "2 GiB for CUDA and NCCL"))
    return Term("buffers", sum(size for size, _ in parts), " + ".join(words for _, words in parts))
