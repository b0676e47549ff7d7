"""The Ray cluster of a run: joined where there is one, else started for this run alone; a token guards its ports."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from dataclasses import dataclass

import ray
from ray.exceptions import RaySystemError

from capo_ray.config import TrainConfig
from capo_ray.config.reward_model import RewardModelConfig
from capo_ray.config.sections import CriticConfig, EngineConfig, LearnerConfig
from capo_ray.protocols import RunFailed

MIB = 1 << 20
REACH_S = 10.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What the actors of a run ask of the cluster."""

    num_cpus: float
    num_gpus: float


def demand_of(config: TrainConfig) -> Demand:
    """The sum over all actors (verifier workers ask for nothing: their children are nearly always idle)."""
    rows: list[tuple[int, EngineConfig | LearnerConfig | CriticConfig | RewardModelConfig]] = [
        (config.engine.num_workers, config.engine),
        (config.learner.num_ranks, config.learner),
    ]
    if "critiques" in config.credit.needs:
        rows.append((config.critic.num_workers, config.critic))
    if "token_rewards" in config.credit.needs:
        rows.append((config.reward_model.num_ranks, config.reward_model))
    return Demand(sum(n * part.num_cpus for n, part in rows), sum(n * part.num_gpus for n, part in rows))


async def join(config: TrainConfig) -> str:
    """As `connect`, within `cluster.start_deadline_s`; past it `RunFailed`, and the thread that waits is left behind.

    A daemon thread, since Ray's own connecting cannot be cancelled and must not keep a failed program alive.
    """
    loop = asyncio.get_running_loop()
    joined: asyncio.Future[str] = loop.create_future()

    def settle(result: str | BaseException) -> None:
        if not joined.done():
            joined.set_exception(result) if isinstance(result, BaseException) else joined.set_result(result)

    def call() -> None:
        try:
            result: str | BaseException = connect(config)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, whatever it is
            result = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result)
        threading.Event().wait()  # Ray's processes die with the thread that started them (PR_SET_PDEATHSIG)

    threading.Thread(target=call, name="connect to Ray", daemon=True).start()
    try:
        return await asyncio.wait_for(joined, config.cluster.start_deadline_s)
    except TimeoutError as error:
        raise RunFailed(
            f"expected Ray at {_address(config) or 'a cluster of its own'} to answer within cluster.start_deadline_s="
            f"{config.cluster.start_deadline_s:g}, got nothing; check the address and the token"
        ) from error


def connect(config: TrainConfig) -> str:
    """The address of the cluster that this process now belongs to; raises `RunFailed` where it cannot serve the run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray would run its workers at nice 15: beside two busy programs on two cores engines took over 180 s to start.
    os.environ.setdefault("RAY_worker_niceness", "0")
    address = _address(config)
    _check_reachable(address)
    demand = demand_of(config)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            cores = config.cluster.num_cpus or os.cpu_count() or 1
            ray.init(
                address="local",
                num_cpus=max(cores, int(-(-demand.num_cpus // 1))),
                include_dashboard=False,
                object_store_memory=config.cluster.object_store_mib * MIB,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RaySystemError, RuntimeError, ValueError, OSError) as error:
        where = address or "a cluster of this run's own"
        raise RunFailed(
            f"expected to reach Ray at {where}, got: {_first_line(error)}; check cluster.address"
        ) from error
    _check_capacity(demand)
    return str(ray.get_runtime_context().gcs_address)


def _address(config: TrainConfig) -> str:
    return config.cluster.address or os.environ.get("RAY_ADDRESS", "")


def _check_reachable(address: str) -> None:
    """Somebody listens at `host:port`: Ray itself would retry a wrong address for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # `auto` and `local`: Ray looks for itself
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise RunFailed(
            f"expected Ray at {address}, but nothing answers there ({error}); check cluster.address and RAY_ADDRESS"
        ) from error


def _check_capacity(demand: Demand) -> None:
    have = ray.cluster_resources()
    for name, wanted in (("CPU", demand.num_cpus), ("GPU", demand.num_gpus)):
        if wanted > have.get(name, 0.0):
            raise RunFailed(
                f"expected a cluster with {wanted:g} {name}s for this run's actors, got {have.get(name, 0.0):g}; "
                f"add nodes, or lower num_workers, num_ranks, num_cpus or num_gpus (see --dry-run)"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
