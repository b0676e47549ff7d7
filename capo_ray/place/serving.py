"""Engines, verifiers and critics for a command that trains nothing: started, worked with once, and ended.

join or start Ray -> engines, one verifier tier for each way of judging, critics where they are asked -> work -> ended
                     (or a server elsewhere: endpoint.base_url)
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
from capo_ray.place.roles.rollout import ROLLOUT, RolloutPool
from capo_ray.place.roles.verifier import VERIFIER, VerifierTier
from capo_ray.place.watch import ClusterWatch
from capo_ray.protocols import Judge, RunFailed, RunStopped

AHEAD = 2
"""Responses under way for each place in an engine, so that none is empty while a verdict is waited for."""


@dataclass(frozen=True, slots=True)
class Crew:
    """Who works for the command."""

    engine: RolloutPool | ServedEngine
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

    address = await cluster.join(serving, tell)
    ending.watch()
    places = config.engine.num_workers * config.engine.max_num_seqs
    in_flight = config.endpoint.max_in_flight if config.is_served else AHEAD * places
    with ClusterWatch(serving) as watch, ends_soon_after_failure(timers, ending):
        await watch.guard(nodes.asked(serving))
        tell(f"starting engines on {address}" if not config.is_served else f"asking {config.endpoint.base_url}")
        async with _started(config, kinds, directory, watch, tokenizer) as (engine, verifiers, judge):
            await watch.guard(work(Crew(engine, verifiers, judge, tokenizer, stops, in_flight)))


@asynccontextmanager
async def _started(
    config: BenchConfig, kinds: set[str], directory: Path, watch: ClusterWatch, tokenizer: HfTokenizer
) -> AsyncIterator[tuple[RolloutPool | ServedEngine, dict[str, VerifierTier], Judge | None]]:
    """The engines, a verifier for each kind, and the critics if there are any; all ended afterwards."""
    serving = config.serving()
    places = Places(serving)
    served = _served(config, tokenizer) if config.is_served else None
    engine = served or ROLLOUT.build(Site(serving, directory, places))
    verifiers: dict[str, VerifierTier] = {
        kind: VERIFIER.build(Site(config.serving(kind), directory, places)) for kind in kinds
    }
    parts: list[Part] = [engine, *verifiers.values()]
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
        if served is not None:
            await served.leave()


def _served(config: BenchConfig, tokenizer: HfTokenizer) -> ServedEngine:
    """The policy at `endpoint.base_url`; raises `RunFailed` where it cannot be asked."""
    rollout = config.rollout
    try:
        return ServedEngine(
            config.endpoint, tokenizer, max_tokens=rollout.max_response_tokens, deadline_s=rollout.deadline_s
        )
    except (ValueError, OSError) as error:
        raise RunFailed(str(error)) from error
