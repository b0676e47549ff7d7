"""The Ray cluster of a run: joined where there is one, else started for this run alone; a token guards its ports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

import psutil
import ray

from capo_ray.config import Job
from capo_ray.demand import adapters_alone, in_all, publishes
from capo_ray.place.capacity import Muster
from capo_ray.place.last_resort import force_exit_after
from capo_ray.problems import asset_path
from capo_ray.protocols import RunFailed
from capo_ray.sizing import shm_bytes, store_bytes
from capo_ray.weights import publish_bytes

MIB = 1 << 20
REACH_S = 10.0
LEAVE_S = 20.0
REGISTER_S = 600
"""For a worker's process to come to be; Ray's own 60 s are short for a busy machine."""


async def join(config: Job, tell: Callable[[str], None] = lambda _: None) -> str:
    """The address of the cluster, once it has what the run asks for; `tell` hears what is waited for."""
    address = await Joining(config).address()
    await Muster(config).wait(tell)
    return address


class Joining:
    """`connect`, within `cluster.start_deadline_s`; past it `RunFailed`, and the thread that waits is left behind.

    A daemon thread, since Ray's own connecting cannot be cancelled and must not keep a failed program alive.
    """

    def __init__(self, config: Job) -> None:
        self._config = config
        self.deadline_s = config.cluster.start_deadline_s

    async def address(self) -> str:
        """The address of the cluster that this process then belongs to."""
        loop = asyncio.get_running_loop()
        joined: asyncio.Future[str] = loop.create_future()

        def settle(result: str | BaseException) -> None:
            if not joined.done():
                joined.set_exception(result) if isinstance(result, BaseException) else joined.set_result(result)

        def call() -> None:
            try:
                result: str | BaseException = connect(self._config)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits, whatever it is
                result = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result)
            threading.Event().wait()  # Ray's processes die with the thread that started them (PR_SET_PDEATHSIG)

        threading.Thread(target=call, name="connect to Ray", daemon=True).start()
        try:
            return await asyncio.wait_for(joined, self.deadline_s)
        except TimeoutError as error:
            raise RunFailed(
                f"expected Ray at {self._config.cluster.joined or 'a cluster of its own'} to answer within "
                f"cluster.start_deadline_s={self.deadline_s:g}, got nothing; check the address and the token"
            ) from error


@contextlib.contextmanager
def left_behind() -> Iterator[None]:
    """Ray is left at the end, which may hang where the cluster is gone: after `LEAVE_S` the process ends by force."""
    failure: BaseException | None = None
    before = set(psutil.Process().children())
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        words = f"capo-ray: {failure}" if isinstance(failure, RunFailed) else ""
        timer = force_exit_after(LEAVE_S, 1, words)
        own = _family(set(psutil.Process().children()) - before)
        ray.shutdown()
        for process in own:  # Ray's agents outlive a dead head by minutes
            with contextlib.suppress(psutil.Error):
                process.kill()
        timer.cancel()


def _family(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The processes and all that they have started."""
    found = list(processes)
    for process in tuple(found):
        with contextlib.suppress(psutil.Error):
            found += process.children(recursive=True)
    return found


def connect(config: Job) -> str:
    """The address of the cluster that this process now belongs to; raises `RunFailed` where there is none."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray would run its workers at nice 15: beside two busy programs on two cores engines took over 180 s to start.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # A worker that has not registered by then is killed and started anew, for ever: at a load of 25 none came to be.
    os.environ.setdefault("RAY_worker_register_timeout_seconds", str(REGISTER_S))
    # Ray would end this process, with no word of ours, 60 s after it lost the head: the watch is to come before it.
    reconnect_s = str(int(config.cluster.deadline_s) + 60)
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", reconnect_s)
    address = config.cluster.joined
    _check_token(config, address)
    _check_reachable(address)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            cores = config.cluster.num_cpus or os.cpu_count() or 1
            ray.init(
                address="local",
                num_cpus=max(cores, math.ceil(in_all(config)[0])),
                include_dashboard=False,
                object_store_memory=object_store_bytes(config),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises what it likes here, bare `Exception` too
        raise RunFailed(_why_unreached(address, error)) from error
    head = str(ray.get_runtime_context().gcs_address)
    if address:
        _check_token(config, head)  # `auto` named none before
    return head


def _why_unreached(address: str, error: Exception) -> str:
    """What to do where Ray was not reached, or, on a busy machine, did not start in the time that it gives itself."""
    if address:
        return (
            f"expected to reach Ray at {address}, got: {_first_line(error)}; check cluster.address, and set "
            "RAY_AUTH_MODE=token if that cluster asks for a token"
        )
    busy = f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
    return (
        f"expected Ray to start a cluster of this run's own, got: {_first_line(error)}; the machine may be too busy "
        f"({busy}) or short of memory, or /tmp full: start again when it is quieter, or join a cluster that is up (ray "
        "start --head, then cluster.address=auto)"
    )


def is_own(config: Job) -> bool:
    """Whether the run makes a cluster of its own, of this one node."""
    return not config.cluster.joined


def object_store_bytes(config: Job) -> int:
    """The object store of a cluster of the run's own: as given, else from the policy's files, which are here."""
    if config.cluster.object_store_mib:
        return config.cluster.object_store_mib * MIB
    if not publishes(config):
        return store_bytes(None, shm_bytes())
    policy, dtype = str(asset_path(config.model.path, "policy")), config.model.dtype
    if not adapters_alone(config):
        return store_bytes(publish_bytes(policy, dtype), shm_bytes())
    from capo_ray.weights import adapter_bytes  # it imports torch, which the driver of any other run does without

    return store_bytes(adapter_bytes(policy, dtype, config.learner.lora), shm_bytes())


def _check_token(config: Job, address: str) -> None:
    """Calls are authenticated wherever ports are open beyond this machine, or the user has said that they need not be.

    A cluster of the run's own listens on every interface.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled" or config.cluster.without_token:
        return
    host = address.rpartition("://")[2].rpartition(":")[0].strip("[]")
    if (address and not host) or host in ("127.0.0.1", "localhost", "::1"):
        return
    raise RunFailed(
        f"expected calls to Ray to need a token, got RAY_AUTH_MODE=disabled for {address or 'a cluster of this run'}, "
        "where whoever reaches its ports runs code; unset it, or set cluster.without_token=true on a closed network"
    )


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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
