"""The memory of one learner rank at its fullest moment, as terms that add up.

    held all along   weights, masters, moments, gradients, reference, buffers
    a pass           what autograd keeps of every layer, then the fuller of two moments of the backward pass:
                     the head (gradients and a tile of logits), or one layer (recomputed, with its gradients)
    a move           Adam's temporaries; counted by what they exceed a pass

T tokens of a microbatch (all counted as response tokens), N parameters, u bytes of a number, h, i, V as in `shapes`.
The layers' bytes are those that Llama, Qwen2 and Qwen3 of transformers keep with a flash-like attention; a test counts.
"""

from __future__ import annotations

from capo_ray.sizing.bytes import Term, over, split
from capo_ray.sizing.fsdp import GPU_BASE_BYTES, fsdp_buffers, fsdp_states
from capo_ray.sizing.load import LearnerLoad
from capo_ray.sizing.shapes import Shape

BUCKET_NUMEL = 200_000_000  # elements of a communication bucket (learners/zero.py; a test holds the two together)
REDUCE_NUMEL = 500_000_000  # stage 1 in bf16: elements of fp32 gradients that DeepSpeed reduces at a time, in a copy
LIVE_BUCKETS = 5  # ZeRO-3: whole weights at hand (stage3_max_live_parameters) and prefetched, in buckets
CPU_BLOCK_BYTES, GPU_BLOCK_BYTES = 16 << 20, 256 << 20  # of logits in fp32: more are not kept (loss/head.py)
HEAD_BLOCKS = 5  # such blocks at once in the backward pass where logits are kept
CPU_TILE, GPU_TILE = (1024, 4 << 20), (4096, 256 << 20)  # most rows, and bytes in fp32, of a tile of logits
ADAM_COPIES = 2  # temporaries of a move, in fp32 copies of what a rank updates


def learner_terms(load: LearnerLoad) -> list[Term]:
    """The terms of one rank's memory; their sum is its fullest moment."""
    terms = _states(load) if not load.fsdp else fsdp_states(load)
    if load.reference:
        terms.append(split("reference", load.num_params, load.unit, reference_shards(load)))
    terms.append(_buffers(load) if not load.fsdp else fsdp_buffers(load))
    kept, head, layer = _activations(load), _head(load), _layer_at_work(load)
    terms += [kept, max(head, layer, key=lambda term: term.num_bytes)]
    in_pass = sum(term.num_bytes for term in terms[-2:])
    move, what = _move(load)
    if move > in_pass:
        terms.append(Term("move", move - in_pass, f"{what}, less the two above"))
    return terms


def _move(load: LearnerLoad) -> tuple[float, str]:
    """The bytes of a move's temporaries, and their formula."""
    if load.offload:
        return 0, "on the host"
    n, parts = load.num_trained, load.num_ranks if load.zero_stage or load.fsdp else 1
    move, what = ADAM_COPIES * 4 * n / parts, f"{ADAM_COPIES} x 4 B x {load.trained}{over(parts)}, of Adam"
    if not load.fsdp and load.zero_stage == 1 and load.unit < 4 and 4 * min(REDUCE_NUMEL, n) > move:
        return 4 * min(REDUCE_NUMEL, n), "4 B x a bucket of gradients that is reduced"
    return move, what


def _states(load: LearnerLoad) -> list[Term]:
    """Weights, masters, moments and gradients of ZeRO and of plain torch."""
    n, u, stage, ranks = load.num_params, load.unit, load.zero_stage, load.num_ranks
    terms = [split("weights", n, u, ranks if stage == 3 else 1)]
    if load.adapters is not None:
        n = load.num_trained
        terms.append(split("adapters", n, u, ranks if stage == 3 else 1, load.trained))
    if load.offload:
        return terms
    # Stages 1 and 2 clone fp32 weights too; stage 3 shares them, stage 0 moves the weights themselves.
    if stage in (1, 2) or (stage == 3 and u < 4):
        terms.append(split("masters", n, 4, ranks, load.trained))
    terms.append(split("moments", n, 8, ranks if stage else 1, load.trained))
    grad = gradient_bytes(load)
    terms.append(split("gradients", n, grad, ranks if stage >= 2 else 1, load.trained))
    return terms


def gradient_bytes(load: LearnerLoad) -> int:
    """Bytes of an accumulated gradient: fp32, whatever the weights."""
    return 4


def reference_shards(load: LearnerLoad) -> int:
    """Over how many ranks the reference is split (learners/reference.py)."""
    return load.num_ranks


def layer_bytes(shape: Shape, unit: int) -> int:
    """What autograd keeps of one layer, in bytes per token.

    Two norms (an fp32 copy, the normed numbers, the input of the projections), q, k, v and the output of attention with
    a number per head, four inner tensors of the MLP.
    """
    norms = 2 * (4 + 2 * unit) * shape.hidden
    attention = unit * 2 * (shape.q + shape.kv) + 4 * shape.heads
    head_norms = (4 + unit) * (shape.q + shape.kv) if shape.qk_norm else 0
    return norms + attention + head_norms + 4 * unit * shape.inner


def _layer_bytes(load: LearnerLoad) -> int:
    """As `layer_bytes`, with adapters if there are any."""
    whole, adapters = layer_bytes(load.shape, load.unit), load.adapters
    # DeepSpeed's ZeRO-3 puts a linear function of its own in torch's place, which saves its input whoever is frozen.
    keeps_inputs = load.zero_stage == 3 and not load.fsdp
    return whole if adapters is None else whole + adapters.activation_bytes(load.shape, load.unit, keeps_inputs)


def _activations(load: LearnerLoad) -> Term:
    shape, unit = load.shape, load.unit
    per_layer = unit * shape.hidden if load.checkpointing else _layer_bytes(load)
    last = (4 + unit) * shape.hidden
    if load.adapters is not None:
        # The last norm is frozen; the first one hands no gradient on to the embedding and keeps no copy in fp32.
        last = 4 * shape.hidden if load.checkpointing else 0
    what = "each layer's input alone" if load.checkpointing else "of each layer"
    return Term(
        "activations",
        load.tokens * (shape.layers * per_layer + last),
        f"{load.tokens:,} tokens x ({shape.layers} layers x {per_layer:,} B {what} + {last:,} B)",
    )


def _head(load: LearnerLoad) -> Term:
    shape, unit = load.shape, load.unit
    block = GPU_BLOCK_BYTES if load.on_gpu else CPU_BLOCK_BYTES
    if not _keeps_logits(load):
        return _tiled_head(load)
    rows = min(max(1, block // (4 * shape.vocab)), load.tokens)
    size = load.tokens * (2 * unit * shape.vocab + unit * shape.hidden) + HEAD_BLOCKS * rows * 4 * shape.vocab
    formula = f"{load.tokens:,} tokens x (2 x {unit} B x V + {unit} B x h) + {HEAD_BLOCKS} blocks of {rows} x 4 B x V"
    return Term("head", size, formula)


def _keeps_logits(load: LearnerLoad) -> bool:
    return load.tokens * load.shape.vocab * 4 <= (GPU_BLOCK_BYTES if load.on_gpu else CPU_BLOCK_BYTES)


def _tiled_head(load: LearnerLoad) -> Term:
    """Hidden states and their gradient, the head's gradient while it is made, a tile of logits and p, its products."""
    shape, unit = load.shape, load.unit
    most, tile_bytes = GPU_TILE if load.on_gpu else CPU_TILE
    rows = min(load.tokens, most)
    columns = min(shape.vocab, tile_bytes // (4 * rows))
    cast = unit if unit < 4 else 0
    per_token = (unit + 4) * shape.hidden
    # Logits and p, or the gradient in both dtypes beside its product with the hidden states; and the sum of these.
    product = 4 * shape.hidden if load.adapters is None else 0  # the head is frozen beside them
    tile = columns * (product + max(8 * rows, (4 + cast) * rows + product))
    size = load.tokens * per_token + tile + _head_gradient(load)
    formula = f"{load.tokens:,} tokens x {per_token:,} B + a tile of {rows:,} x {columns:,} logits + its gradient"
    return Term("head", size, formula)


def _head_gradient(load: LearnerLoad) -> float:
    """The bytes of the head's own gradient while a pass makes it, where it is trained and no buffer holds it."""
    if load.adapters is not None or load.fsdp:
        return 0
    buffered = load.zero_stage >= 2 or (load.zero_stage == 1 and load.unit < 4)
    return 0 if buffered else load.unit * load.shape.vocab * load.shape.hidden


def _layer_at_work(load: LearnerLoad) -> Term:
    shape, unit = load.shape, load.unit
    again = _layer_bytes(load) if load.checkpointing else 0
    # Gradients of three inner numbers; the first comes where the input of down_proj goes, if that was kept.
    inner = 2 if load.adapters is None or load.adapters.on("down_proj") else 3
    size = again + unit * (inner * shape.inner + shape.hidden)
    # A tied head's gradient waits for the embedding's, until the last layer is done.
    held = _head_gradient(load) if shape.tied and not _keeps_logits(load) else 0
    formula = f"{load.tokens:,} tokens x {size:,} B (its backward pass)" + (
        " + the tied head's gradient" if held else ""
    )
    return Term("one layer", load.tokens * size + held, formula)


def _buffers(load: LearnerLoad) -> Term:
    """Buckets of collectives, whole weights gathered by ZeRO-3, the largest gradient before it is reduced, the base.

    A gradient larger than a bucket is reduced alone. In bf16 DeepSpeed's stage 2 fills buckets in bf16 and casts what
    it reduces; stage 3 fills one in fp32, casts what is larger, and lays both out by ranks in a copy.
    """
    n, unit, shape, stage = load.num_trained, load.unit, load.shape, load.zero_stage
    bucket, head = min(BUCKET_NUMEL, n), shape.vocab * shape.hidden if load.adapters is None else 0
    largest, cast = max(bucket, head), unit < 4
    parts: list[tuple[float, str]] = []
    if stage == 3:
        live = min(LIVE_BUCKETS * BUCKET_NUMEL, load.num_params)
        parts += [(unit * live, f"{live / 1e6:,.0f}M weights made whole"), (4 * bucket, "a bucket in fp32")]
        parts.append((4 * largest, "its parts by ranks"))
        if cast and head > bucket:
            parts.append((4 * head, "the head's gradient in fp32"))
    elif stage == 2:
        count = 2 if load.on_gpu else 1  # two where communication overlaps
        parts.append((count * unit * bucket, f"{count} bucket(s)"))
        if cast:
            parts.append((4 * largest, "one in fp32"))
    elif stage == 1 and not cast:
        parts.append((unit * bucket, "1 bucket"))
    if head and (stage >= 2 or (stage == 1 and cast)):
        parts.append((unit * head * (2 if shape.tied else 1), "the head's gradient"))
    if load.on_gpu:
        parts.append((GPU_BASE_BYTES, "2 GiB for CUDA and NCCL"))
    return Term("buffers", sum(size for size, _ in parts), " + ".join(words for _, words in parts) or "none")
