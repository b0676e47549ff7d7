"""The Ray cluster of a run: joined where there is one, else started for this run alone; a token guards its ports."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RaySystemError

from capo_ray.config import TrainConfig
from capo_ray.config.reward_model import RewardModelConfig
from capo_ray.config.sections import CriticConfig, EngineConfig, LearnerConfig
from capo_ray.place.placement import ask_of
from capo_ray.problems import asset_path
from capo_ray.protocols import RunFailed
from capo_ray.sizing import shm_bytes, store_bytes
from capo_ray.weights import publish_bytes

MIB = 1 << 20
REACH_S = 10.0
POLL_S = 2.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What the actors of a run ask of the cluster."""

    num_cpus: float
    num_gpus: float
    bundles: tuple[dict[str, float], ...] = ()
    """What each actor asks for, its fence included."""


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
    bundles = [_bundle(part) for n, part in rows for _ in range(n)]
    return Demand(
        sum(n * part.num_cpus for n, part in rows), sum(n * part.num_gpus for n, part in rows), tuple(bundles)
    )


def _bundle(part: EngineConfig | LearnerConfig | CriticConfig | RewardModelConfig) -> dict[str, float]:
    options = ask_of(part)
    named = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
    return {name: amount for name, amount in named.items() if amount}


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
        return await asyncio.wait_for(joined, config.cluster.start_deadline_s + config.cluster.wait_s)
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
                object_store_memory=object_store_bytes(config),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RaySystemError, RuntimeError, ValueError, OSError) as error:
        where = address or "a cluster of this run's own"
        raise RunFailed(
            f"expected to reach Ray at {where}, got: {_first_line(error)}; check cluster.address"
        ) from error
    await_capacity(demand, config.cluster.wait_s, ray.cluster_resources, _ask_autoscaler)
    return str(ray.get_runtime_context().gcs_address)


def object_store_bytes(config: TrainConfig) -> int:
    """The object store of a cluster of the run's own: as given, else from the policy's files, which are here."""
    if config.cluster.object_store_mib:
        return config.cluster.object_store_mib * MIB
    policy = str(asset_path(config.model.path, "policy"))
    return store_bytes(publish_bytes(policy, config.model.dtype), shm_bytes())


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


def await_capacity(
    demand: Demand,
    wait_s: float,
    resources: Callable[[], Mapping[str, float]],
    ask: Callable[[Sequence[dict[str, float]]], None],
) -> None:
    """Returns once `resources` hold the demand; RunFailed where they do not within `wait_s`.

    While something lacks, `ask` tells an autoscaler of the bundles, since there are no actors yet that it could see; at
    the end it is told of none, so that it holds no node for a run that has gone.
    """
    deadline, asked = time.monotonic() + wait_s, False
    try:
        while lacking := _lacking(demand, resources()):
            if not asked and wait_s:
                ask(demand.bundles)
                asked = True
            _give_up(lacking, wait_s, deadline)
            time.sleep(min(POLL_S, wait_s))
    finally:
        if asked:
            ask(())


def _give_up(lacking: tuple[str, float, float], wait_s: float, deadline: float) -> None:
    if time.monotonic() < deadline:
        return
    name, wanted, have = lacking
    waited = f" within cluster.wait_s={wait_s:g}" if wait_s else ""
    raise RunFailed(
        f"expected a cluster with {wanted:g} {name}s for this run's actors{waited}, got {have:g}; add nodes, wait for "
        "them with cluster.wait_s, or lower num_workers, num_ranks, num_cpus or num_gpus (see --dry-run)"
    )


def _lacking(demand: Demand, have: Mapping[str, float]) -> tuple[str, float, float] | None:
    """The first resource of which there is too little: its name, what is wanted and what is there."""
    for name, wanted in (("CPU", demand.num_cpus), ("GPU", demand.num_gpus)):
        if wanted > have.get(name, 0.0):
            return name, wanted, have.get(name, 0.0)
    return None


def _ask_autoscaler(bundles: Sequence[dict[str, float]]) -> None:
    """Tell an autoscaler, where there is one, to hold nodes for these bundles in place of those told before."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=list(bundles))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
