"""One version of the weights for another, between two decode steps.

    verify, load beside (engine still serves) | pause: drain, take or load, forget, score the canary | serve, computing
    anew by and by

Invariants: what was verified is what is loaded; no step is in flight while weights change, so a token's version is that
of the weights that sampled it; no token is sampled with keys and values of older weights (`keep`: only a sequence that
was running reads its own); the canary is answered before a sequence is computed anew; what was sampled beside it is
handed out only once it has passed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from capo_ray.engines.scheduling import canary_alone, forget
from capo_ray.engines.spec import EngineSpec
from capo_ray.engines.stepper import EngineBroken, Job, Stepper
from capo_ray.engines.twin import Twin
from capo_ray.protocols import WeightsHandle
from capo_ray.weights import (
    AdaptersAlone,
    Canary,
    Contents,
    Found,
    Held,
    Manifest,
    WeightsRefused,
    WholeModel,
    as_bytes,
    checkpoint_shapes,
    verify_handle,
)

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine


def verify_for(
    handle: WeightsHandle,
    contents: Contents,
    num_threads: int = 1,
    found: Found | None = None,
    came: Manifest | None = None,
) -> Manifest:
    """The handle's manifest, once its bytes were compared with it, and what it names with the engine's model."""
    manifest = verify_handle(handle, num_threads, found, came)
    contents.require(manifest)
    return manifest


def contents_of(spec: EngineSpec, tied: bool) -> Contents:
    """What the versions of an engine hold."""
    shapes = checkpoint_shapes(spec.model_path) if spec.takes_weights else {}
    if spec.adapters is None:
        return WholeModel(shapes, spec.dtype, tied)
    return AdaptersAlone(spec.model_path, shapes, spec.dtype, tied, spec.adapters)


@contextmanager
def staged(
    engine: LLMEngine, handle: WeightsHandle, contents: Contents, came: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Where every worker of the engine finds the whole model of a verified version, until the block ends; made while it
    still serves. `came`: where they find what came, if there is no payload of it.

    One worker in this process takes the payload as it is; workers in processes of their own map a private file, or hold
    the whole model that they have received themselves.
    """
    from capo_ray.engines.transfer import shared_file

    if came is not None:
        yield came | {"tensors": dict(contents.whole(came["tensors"].items()))} if "tensors" in came else came
        return
    manifest, whole = contents.payload(handle.manifest, handle.payload)
    payload = as_bytes(whole)
    if in_process(engine):
        yield {"manifest": manifest, "payload": payload}
        return
    with shared_file(payload) as path:
        del whole, payload
        yield {"manifest": manifest, "path": path}


def swap(
    stepper: Stepper, source: dict[str, Any] | Twin, manifest: Manifest, deadline_s: float, *, keep: bool = False
) -> float:
    """The seconds for which nobody was served; `source` is what `staged` gave, or a twin that holds the weights
    already. Runs on the stepping thread.

    With `keep`, running sequences go on with the keys and values that they have.

    Raises `WeightsRefused` if the canary fails (every waiting job has then been failed with it), and `EngineBroken` if
    vLLM could not load verified weights: half-loaded weights cannot be mended.
    """
    before = time.perf_counter()
    restarting = [(job, list(job.pending.values())) for job in stepper.jobs() if job.restarts]
    for job, _ in restarting:
        stepper.abort(job)
    for job, index, output in stepper.drain():
        job.done(index, output)
    try:
        _load(stepper, source)
        stepper.engine.set_weight_version(str(manifest.version))
        forget(stepper.engine, str(manifest.version), keep=keep)
    except Exception as error:
        raise EngineBroken(f"vLLM could not load version {manifest.version}: {error!r}") from error
    stepper.salt = str(manifest.version)
    if not keep:
        stepper.pace.slow()
    for job, indices in restarting:
        stepper.add(job, indices)
    held: list[tuple[Job, int, RequestOutput]] = []
    if manifest.canary is not None:
        try:
            stepper.held = _prove(stepper, manifest.canary, manifest.version, before + deadline_s, held)
        except WeightsRefused as error:
            for job in dict.fromkeys(job for job, _, _ in held):
                job.fail(error)
            stepper.fail_all(error)
            raise
    seconds = time.perf_counter() - before
    for job, index, output in held:
        job.done(index, output)
    return seconds


def in_process(engine: LLMEngine) -> bool:
    """Whether the engine's only worker lives here, so that the payload needs no file."""
    return engine.vllm_config.parallel_config.world_size == 1


def _load(stepper: Stepper, source: dict[str, Any] | Twin) -> None:
    """Take over what lies ready, or drive vLLM's own weight-update interface on every worker."""
    if isinstance(source, Twin):
        source.take()
        return
    engine = stepper.engine
    engine.collective_rpc("start_weight_update")
    engine.collective_rpc("update_weights", kwargs={"update_info": source})
    engine.collective_rpc("finish_weight_update")


def _prove(
    stepper: Stepper,
    canary: Canary,
    version: int,
    deadline: float,
    held: list[tuple[Job, int, RequestOutput]],
) -> Held:
    """The canary that the engine has passed, scored ahead of all else; what finishes beside it goes to `held`.

    Raises `WeightsRefused` where it does not pass.
    """
    from capo_ray.engines.requests import score_params, scored

    answers: list[RequestOutput] = []
    job = Job([(canary.token_ids, score_params())], lambda _, output: answers.append(output), _ignore, priority=-1)
    try:
        stepper.add(job)
    except ValueError as error:
        raise WeightsRefused(f"version {version}: the canary cannot be scored ({error})") from error
    with canary_alone(stepper.engine, len(canary.token_ids)):
        while not answers:
            if time.perf_counter() > deadline:
                stepper.abort(job)
                raise WeightsRefused(f"version {version}: the canary was not scored in time; is the engine overloaded?")
            for owner, index, output in stepper.step():
                if owner is job:
                    answers.append(output)
                else:
                    held.append((owner, index, output))
    return canary.judge(scored(answers[0], canary.start), version, stepper.held)


def _ignore(_: BaseException) -> None:
    """The canary's own failure is seen by whoever steps."""
