"""The evaluation job: rollout workers and verifiers on a cluster, fed with what is missing of each suite, and no more.

join or start Ray -> engines, one verifier tier for each way of judging -> suite after suite -> all ended
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from capo_ray.config.evaluation import EvalConfig
from capo_ray.demand import policy_model
from capo_ray.engines import HfTokenizer
from capo_ray.flow.answering import Answering, Asked, ResponseFile, missing
from capo_ray.flow.outcome import first_cause
from capo_ray.place import cluster, nodes
from capo_ray.place.ending import Ending, ends_soon_after_failure
from capo_ray.place.placement import Places
from capo_ray.place.role import Part, Site, path_of
from capo_ray.place.roles.rollout import ROLLOUT, RolloutPool
from capo_ray.place.roles.verifier import VERIFIER, VerifierTier
from capo_ray.place.watch import ClusterWatch
from capo_ray.prompts import frame_question
from capo_ray.protocols import RunStopped
from capo_ray.types import Problem

AHEAD = 2
"""Responses under way for each place in an engine, so that none is empty while a verdict is waited for."""
Judged = Mapping[str, tuple[str, Sequence[Problem]]]
"""By suite: the kind of its verifier, and its problems."""


def answer_suites(
    config: EvalConfig, suites: Judged, asked: Asked, file: ResponseFile, tell: Callable[[str], None]
) -> None:
    """Returns once the file holds every response; `tell` hears of what goes on, the name of a suite after each problem.

    Raises `RunFailed` or `RunStopped`; what was answered before is in the file.
    """
    ending, timers = Ending(0.0), list[threading.Timer]()
    try:
        with cluster.left_behind():
            asyncio.run(_answer(config, suites, asked, file, tell, ending, timers))
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        kept = f"go on with capo-ray eval resume={file.path.parent}"
        raise RunStopped(kept, ending.signum or signal.SIGINT) from error
    except ExceptionGroup as failures:
        raise first_cause(failures) from None
    finally:
        for timer in timers:
            timer.cancel()


async def _answer(
    config: EvalConfig,
    suites: Judged,
    asked: Asked,
    file: ResponseFile,
    tell: Callable[[str], None],
    ending: Ending,
    timers: list[threading.Timer],
) -> None:
    serving, model = config.serving(), config.model
    tokenizer = HfTokenizer(path_of(policy_model(serving)))
    stops = tokenizer.stop_ids(model.stop_tokens) if model.stop_tokens else ()
    sampling = replace(asked.sampling, stop_token_ids=stops, stop_strings=model.stop_strings)

    address = await cluster.join(serving, tell)
    ending.watch()
    await asyncio.to_thread(nodes.check_nodes, serving)
    tell(f"starting engines on {address}")
    wanted = {name: missing(problems, asked, file) for name, (_, problems) in suites.items()}
    with ClusterWatch(serving) as watch, ends_soon_after_failure(timers, ending):
        async with _started(config, {kind for kind, _ in suites.values()}, watch) as (engine, verifiers):
            for name, problems in wanted.items():
                tell(name)
                answering = Answering(
                    replace(asked, sampling=sampling),
                    engine,
                    lambda problem: frame_question(tokenizer, problem.prompt, model),
                    file,
                    in_flight=AHEAD * config.engine.num_workers * config.engine.max_num_seqs,
                    gpus=config.engine.num_workers * config.engine.num_gpus,
                    tell=partial(tell, name),
                )
                await watch.guard(answering.answer(problems, verifiers[suites[name][0]]))


@asynccontextmanager
async def _started(
    config: EvalConfig, kinds: set[str], watch: ClusterWatch
) -> AsyncIterator[tuple[RolloutPool, dict[str, VerifierTier]]]:
    """The engines, and a verifier for each kind; all ended afterwards."""
    places = Places(config.serving())
    engine = ROLLOUT.build(Site(config.serving(), Path(), places))
    verifiers: dict[str, VerifierTier] = {
        kind: VERIFIER.build(Site(config.serving(kind), Path(), places)) for kind in kinds
    }
    parts: list[Part] = [engine, *verifiers.values()]

    async def start() -> None:
        await asyncio.gather(*(part.start() for part in parts))

    try:
        await watch.guard(places.reserve())
        await watch.guard(start())
        yield engine, verifiers
    finally:
        for part in parts:
            part.close()
        places.close()
