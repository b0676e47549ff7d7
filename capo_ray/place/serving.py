"""Engines, verifiers and critics for a command that trains nothing: started, worked with once, and ended.

join or start Ray -> engines, one verifier tier for each way of judging, critics where they are asked -> work -> ended
endpoint.base_url: that server is asked first, and there are no engines
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo_ray.config.evaluation import BenchConfig, JudgedServeConfig
from capo_ray.critics.outage import PatientJudge
from capo_ray.demand import policy_model
from capo_ray.engines import HfTokenizer, ServedEngine
from capo_ray.flow.outcome import first_cause
from capo_ray.place import cluster, nodes
from capo_ray.place.ending import Ending, ends_soon_after_failure
from capo_ray.place.placement import Places
from capo_ray.place.role import Part, Site, path_of
from capo_ray.place.roles.critic import CRITIC
from capo_ray.place.roles.rollout import ROLLOUT
from capo_ray.place.roles.verifier import VERIFIER, VerifierTier
from capo_ray.place.watch import ClusterWatch
from capo_ray.protocols import Judge, RunFailed, RunStopped, TextEngine

AHEAD = 2
"""Responses under way for each place in an engine, so that none is empty while a verdict is waited for."""


@dataclass(frozen=True, slots=True)
class Crew:
    """Who works for the command."""

    engine: TextEngine
    verifiers: Mapping[str, VerifierTier]
    """By kind."""
    judge: Judge | None
    tokenizer: HfTokenizer
    stop_token_ids: tuple[int, ...]
    in_flight: int
    """Responses that are worth asking for at once."""


Work = Callable[[Crew], Coroutine[Any, Any, None]]


def serve(
    config: BenchConfig, kinds: set[str], directory: Path, work: Work, tell: Callable[[str], None], command: str
) -> None:
    """Returns once `work` is done; critics keep what they said in `directory`.

    Raises `RunFailed` or `RunStopped`, which names the `command` to go on with.
    """
    ending, timers = Ending(0.0), list[threading.Timer]()
    try:
        with cluster.left_behind():
            asyncio.run(_serve(config, kinds, directory, work, tell, ending, timers))
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        kept = f"go on with capo-ray {command} resume={directory}"
        raise RunStopped(kept, ending.signum or signal.SIGINT) from error
    except ExceptionGroup as failures:
        raise first_cause(failures) from None
    finally:
        for timer in timers:
            timer.cancel()


async def _serve(
    config: BenchConfig,
    kinds: set[str],
    directory: Path,
    work: Work,
    tell: Callable[[str], None],
    ending: Ending,
    timers: list[threading.Timer],
) -> None:
    serving, model = config.serving(), config.model
    tokenizer = HfTokenizer(path_of(policy_model(serving)))
    stops = tokenizer.stop_ids(model.stop_tokens) if model.stop_tokens else ()

    places = config.engine.num_workers * config.engine.max_num_seqs
    in_flight = config.endpoint.max_in_flight if config.is_served else AHEAD * places
    async with _reached(config, tokenizer, tell) as served:
        address = await cluster.join(serving, tell)
        ending.watch()
        with ClusterWatch(serving) as watch, ends_soon_after_failure(timers, ending):
            await watch.guard(nodes.asked(serving))
            tell(f"starting workers on {address}")
            async with _started(config, kinds, directory, watch, served) as (engine, verifiers, judge):
                await watch.guard(work(Crew(engine, verifiers, judge, tokenizer, stops, in_flight)))


@asynccontextmanager
async def _reached(
    config: BenchConfig, tokenizer: HfTokenizer, tell: Callable[[str], None]
) -> AsyncIterator[ServedEngine | None]:
    """The policy at `endpoint.base_url`, which has answered; None where engines of our own hold it.

    Raises `RunFailed` with the server's words, before anything is started.
    """
    if not config.is_served:
        yield None
        return
    limits = config.rollout
    try:
        served = ServedEngine(
            config.endpoint, tokenizer, max_tokens=limits.max_response_tokens, deadline_s=limits.deadline_s
        )
    except (ValueError, OSError) as error:
        raise RunFailed(str(error)) from error
    try:
        tell(f"asking {config.endpoint.base_url}")
        await served.start()
        yield served
    finally:
        await served.close()


@asynccontextmanager
async def _started(
    config: BenchConfig, kinds: set[str], directory: Path, watch: ClusterWatch, served: ServedEngine | None
) -> AsyncIterator[tuple[TextEngine, dict[str, VerifierTier], Judge | None]]:
    """What holds the policy, a verifier for each kind, and the critics if there are any; all ended afterwards."""
    serving = config.serving()
    places = Places(serving)
    verifiers: dict[str, VerifierTier] = {
        kind: VERIFIER.build(Site(config.serving(kind), directory, places)) for kind in kinds
    }
    engine: TextEngine
    parts: list[Part] = [*verifiers.values()]
    if served is not None:
        engine = served
    else:
        engine = rollout = ROLLOUT.build(Site(serving, directory, places))
        parts.append(rollout)
    judge: Judge | None = None
    if isinstance(serving, JudgedServeConfig):
        critics = CRITIC.build(Site(serving, directory, places))
        parts, judge = [*parts, critics], PatientJudge(critics, serving.critic)

    async def start() -> None:
        await asyncio.gather(*(part.start() for part in parts))

    try:
        await watch.guard(places.reserve())
        await watch.guard(start())
        yield engine, verifiers, judge
    finally:
        for part in parts:
            part.close()
        places.close()
