"""Whether a run fits the devices that it is planned for; where it does not, the largest setting that would.

Invariant: a refusal names what is short (GPUs or memory), both figures, and one change that was tried here and fits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from capo_ray.cli import memory
from capo_ray.cli.memory_ranks import DTYPE_BYTES, Model
from capo_ray.config import Job, TrainConfig
from capo_ray.config.engine import EngineBase
from capo_ray.demand import Demand, ModelUse, demand, neighbourhoods, without_neighbours
from capo_ray.protocols import RunFailed
from capo_ray.sizing import kv_bytes_per_token, pack, unshared_heads

GRAIN_TOKENS = 512  # proposals of token counts are multiples of it
MOST_RANKS = 512
FULLEST_FRAC = 0.95  # of a GPU that an engine may be told to take


def refuse_misfit(config: TrainConfig) -> None:
    """Raise `RunFailed` for the first part of the run that the given or found devices cannot hold."""
    refuse_idle_gpus(config)
    refuse_too_few_gpus(config)
    device = memory.device_gib(config)
    if device is None:
        return
    for one in demand(config):
        if one.engine is not None and one.model is not None:
            _refuse_engine(one.section, one.engine, one.model, config, device)
        elif one.model is not None:
            _refuse_rank(one, config, memory.sized(one.model), device)


def refuse_idle_gpus(config: Job) -> None:
    """Raise for an actor that is given GPUs which it would leave idle, and for ranks of a group on shares of one."""
    for one in demand(config):
        key, got = f"{one.section}.num_gpus", f"(got {one.num_gpus:g})"
        if one.is_group and one.count > 1 and 0 < one.num_gpus < 1:
            raise RunFailed(
                f"{key} must be 1 with {one.section}.num_ranks={one.count}, since NCCL takes no two ranks on one GPU "
                f"{got}; set 1, or {one.section}.num_ranks=1"
            )
        used = 1 if one.engine is None else one.engine.tensor_parallel
        if one.num_gpus > used:
            more = f"{one.section}.num_ranks" if one.engine is None else f"{one.section}.num_workers"
            whose = "which a rank computes on" if one.engine is None else f"those of {one.section}.tensor_parallel"
            raise RunFailed(f"{key} must be <= {used}, {whose} {got}; set {used}, and raise {more} to use more")


def bundles(config: TrainConfig) -> list[float]:
    """The GPUs of every actor, or of actors that stand together, each to be found on one node."""
    sizes = [sum(one.num_gpus for one, _ in members) for members in neighbourhoods(config)]
    for one in without_neighbours(config):
        sizes += [one.num_gpus] * one.count
    return [size for size in sizes if size > 0]


def refuse_too_few_gpus(config: TrainConfig) -> None:
    """Raise where the nodes that are given cannot hold the actors' GPUs."""
    cluster, sizes = config.cluster, bundles(config)
    if not cluster.gpus_per_node or pack(sizes, cluster.num_nodes, cluster.gpus_per_node):
        return
    here = (
        f"{cluster.num_nodes * cluster.gpus_per_node} (cluster.num_nodes={cluster.num_nodes} x "
        f"cluster.gpus_per_node={cluster.gpus_per_node})"
    )
    if max(sizes) > cluster.gpus_per_node:
        raise RunFailed(
            f"expected nodes of {max(sizes):g} GPUs or more for the largest actor of this run, got "
            f"cluster.gpus_per_node={cluster.gpus_per_node}; lower tensor_parallel and num_gpus, or name larger nodes"
        )
    nodes = next(n for n in range(cluster.num_nodes, sum(map(int, sizes)) + len(sizes) + 1) if _packs(sizes, config, n))
    ranks = next((r for r in range(config.learner.num_ranks - 1, 0, -1) if _fits_with_ranks(config, r)), 0)
    fewer = f"lower learner.num_ranks to {ranks}, or " if ranks else ""
    raise RunFailed(
        f"expected {sum(sizes):g} GPUs for this run's actors, each whole on a node, got {here}; {fewer}raise "
        f"cluster.num_nodes to {nodes}"
    )


def _packs(sizes: list[float], config: TrainConfig, nodes: int) -> bool:
    return pack(sizes, nodes, config.cluster.gpus_per_node)


def _fits_with_ranks(config: TrainConfig, ranks: int) -> bool:
    return _packs(bundles(_change(config, "learner", num_ranks=ranks)), config, config.cluster.num_nodes)


def _refuse_rank(one: Demand, config: TrainConfig, model: Model, device: float) -> None:
    """Raise where a rank's terms exceed its GPU."""
    row = memory.role_memory(config, one, model)
    device *= min(1.0, one.num_gpus)  # a share of a GPU is a share of its memory
    if not row.on_gpu or not row.known or row.gib_each <= device:
        return
    largest = max(row.terms, key=lambda term: term.num_bytes)
    raise RunFailed(
        f"{row.role}: expected at most {device:.1f} GiB of memory on each of its GPUs, got {row.gib_each:.1f} (most of "
        f"it: {largest.name}, {largest.gib:.1f}); {_way_out(config, one, model, device)}"
    )


def _way_out(config: TrainConfig, one: Demand, model: Model, device: float) -> str:
    """The first change that makes a rank fit: recomputing, fewer tokens, offloading, more ranks, shorter sequences."""

    def fits(changed: TrainConfig) -> bool:
        (same,) = (other for other in demand(changed) if other.role == one.role)
        return memory.role_memory(changed, same, model).gib_each <= device

    base = config
    if not config.learner.gradient_checkpointing:
        base = _change(config, "learner", gradient_checkpointing=True)
        if fits(base):
            return "set learner.gradient_checkpointing=true"
    for start, words in ((config, ""), (base, " (with learner.gradient_checkpointing=true)")):
        budget = _grains(config.model.max_model_len, config.learner.microbatch_tokens - 1)
        tokens = _largest(budget, lambda n, start=start: fits(_change(start, "learner", microbatch_tokens=n)))
        if tokens:
            return f"largest learner.microbatch_tokens that fits: {tokens:,}{words}"
    more = "" if base is config else " with learner.gradient_checkpointing=true"
    if fits(_change(base, "learner", offload_reference=True)):
        return f"set learner.offload_reference=true{more}"
    for together in (n for n in (2, 4, 8, 16) if _shares_rows(config, one, model, n)):
        if fits(_change(base, "learner", sequence_parallel=together)):
            return f"set learner.sequence_parallel={together}{more}"
    moved = config.learner.holds_parts and fits(_change(base, "learner", offload_states=True))
    other = ", or set learner.offload_states=true" if moved else ""
    for stage in (config.learner.zero_stage, 3):
        sharded = _change(base, "learner", zero_stage=stage)
        also = "" if stage == config.learner.zero_stage else f" with learner.zero_stage={stage}"
        ranks = one.count
        while ranks <= MOST_RANKS:
            if fits(_change(sharded, one.section, num_ranks=ranks)):
                return f"raise {one.section}.num_ranks to {ranks}{also}{other}{more}"
            ranks *= 2
    length = _largest(
        _grains(1, config.model.max_model_len - 1),
        lambda n: fits(_change(_change(base, "learner", microbatch_tokens=n), "model", max_model_len=n)),
    )
    if length:
        return f"largest model.max_model_len (and learner.microbatch_tokens) that fits: {length:,}{more}"
    return "no number of tokens or ranks makes it fit: choose a smaller model or larger GPUs"


def _shares_rows(config: TrainConfig, one: Demand, model: Model, ranks: int) -> bool:
    """Whether so many of a role's ranks could compute a row together."""
    shape = model.shape
    return (
        one.role == "learner"
        and config.learner.packing == "shared"
        and one.count % ranks == 0
        and shape is not None
        and not unshared_heads((shape.heads, shape.kv_heads), ranks)
    )


def _refuse_engine(name: str, section: EngineBase, part: ModelUse, config: TrainConfig, device: float) -> None:
    """Raise where an engine's share of a GPU does not hold its weights and one sequence of full length."""
    model = memory.sized(part)
    if section.num_gpus == 0 or model.shape is None:
        return
    unit, shape = DTYPE_BYTES[part.dtype], model.shape
    if section.num_gpus < min(1.0, section.gpu_memory_frac) and config.critic.placement != "colocated":
        raise RunFailed(
            f"{name}.gpu_memory_frac must be <= {name}.num_gpus, its share of a GPU whose memory others have too (got "
            f"{section.gpu_memory_frac:g} > {section.num_gpus:g}); lower {name}.gpu_memory_frac to {section.num_gpus:g}"
        )

    def room(changed: EngineBase) -> float:
        row = memory.engine_memory(name, changed, model, part.dtype, device)
        return row.terms[-1].num_bytes / kv_bytes_per_token(shape, unit, changed.tensor_parallel)

    if room(section) >= part.max_model_len:
        return
    key = part.key.partition(".")[0]
    shared = section.num_gpus < 1
    fuller = section.model_copy(update={"gpu_memory_frac": FULLEST_FRAC})
    wider: Iterable[int] = (tp for tp in (2, 4, 8) if tp > section.tensor_parallel and not shape.unshared(tp))
    split = next(
        (tp for tp in wider if room(section.model_copy(update={"tensor_parallel": tp})) >= part.max_model_len), 0
    )
    if not shared and section.gpu_memory_frac < FULLEST_FRAC and room(fuller) >= part.max_model_len:
        cure = f"raise {name}.gpu_memory_frac to {FULLEST_FRAC}"
    elif room(section) >= GRAIN_TOKENS:
        cure = f"largest {key}.max_model_len that fits: {int(room(section)) // GRAIN_TOKENS * GRAIN_TOKENS:,}"
    elif split:
        cure = f"raise {name}.tensor_parallel and {name}.num_gpus to {split}"
    else:
        cure = "choose a smaller model or larger GPUs"
    row = memory.engine_memory(name, section, model, part.dtype, device)
    held = sum(term.gib for term in row.terms[:-1])
    raise RunFailed(
        f"{name}: expected room for one sequence of {key}.max_model_len={part.max_model_len} beside {held:.1f} GiB of "
        f"weights and working memory, got {section.gpu_memory_frac:g} of a GPU's {device:.1f} GiB of memory, which "
        f"leaves {max(0, int(room(section))):,} tokens; {cure}"
    )


def _change(config: TrainConfig, section: str, **changes: Any) -> TrainConfig:
    part = getattr(config, section).model_copy(update=changes)
    return config.model_copy(update={section: part})


def _grains(low: int, high: int) -> range:
    """Multiples of the grain from `low` to `high`."""
    return range(-(-low // GRAIN_TOKENS) * GRAIN_TOKENS, high + 1, GRAIN_TOKENS)


def _largest(numbers: range, fits: Any) -> int:
    """The largest number that fits, of ascending ones of which all fit up to some point; 0 where none does."""
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(numbers[middle]) else (low, middle)
    return numbers[low - 1] if low else 0
