"""A vLLM engine in this process, with an async face: `protocols.TextEngine` on vLLM for the CPU and for GPUs.

    generate / stream / score --jobs--> Stepper (one thread, one LLMEngine) --call_soon_threadsafe--> the awaiting loop

Invariant: while the engine holds weights that it refused, or none that it can vouch for, every request raises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

from capo_ray.engines.arrival import Arrival, Arrivals
from capo_ray.engines.requests import completion, sampling_params, score_params, scored, version_of
from capo_ray.engines.runtime import build_engine, close_engine, verify_threads
from capo_ray.engines.spec import EngineSpec
from capo_ray.engines.stepper import EngineBroken, Job, Stepper
from capo_ray.engines.swap import contents_of, staged, swap
from capo_ray.engines.tokenizer import HfTokenizer
from capo_ray.engines.twin import Twin
from capo_ray.protocols import PartTimeout, Sampling, WeightsHandle
from capo_ray.types import Completion
from capo_ray.weights import Manifest, WeightsRefused
from capo_ray.written import require_written

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

Request = tuple[Sequence[int], "SamplingParams"]


class VllmEngine:
    """One engine, one version of the weights at a time. `start()` before use, `close()` after."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._stepper = Stepper(lambda: build_engine(spec), close_engine, spec.model_path)
        self._refused: WeightsRefused | None = None
        self._version = 0
        self._totals = dict.fromkeys(
            ("requests", "generated_tokens", "prompt_tokens", "cached_prompt_tokens", "swaps", "refused_swaps"), 0
        )
        self._swap_s = self._swap_s_max = 0.0

    # -- life

    def start(self) -> None:
        """Load tokenizer and model; blocks for seconds to minutes, at most `spec.start_deadline_s`."""
        require_written(self.spec.model_path)
        self.tokenizer = HfTokenizer(self.spec.model_path)
        self._stepper.start(self.spec.start_deadline_s)
        config = self._stepper.engine.model_config
        self._vocab_size = config.get_vocab_size()
        tied = bool(getattr(config.hf_config, "tie_word_embeddings", False))
        beside, threads, contents = self.spec.device == "cpu", verify_threads(self.spec), contents_of(self.spec, tied)
        self._arrivals = Arrivals(threads, self._between_steps, contents, beside=beside, tied=tied)
        # The second-generation runner of GPU vLLM scores prompts by other code, which has not been read for this.
        self._score_from_cache = not self._stepper.engine.vllm_config.use_v2_model_runner

    def close(self) -> None:
        """Stop the engine; whatever still waits fails. May be called more than once."""
        self._stepper.close()

    @property
    def version(self) -> int:
        """The version of the weights that serve (0 at the start)."""
        return self._version

    def ping(self) -> int:
        """The version held; raises what a request would raise now, or `EngineBroken` if a step does not end."""
        self._ready()
        limit = self.spec.step_deadline_s
        if not self._totals["requests"]:
            limit = max(limit, self.spec.start_deadline_s)
        seconds = self._stepper.seconds_in_step()
        if seconds > limit:
            running, waiting = self._stepper.request_counts()
            raise EngineBroken(
                f"engine {self.spec.model_path}: step {self._stepper.num_steps + 1} of version {self._version} "
                f"({running} requests running, {waiting} waiting) has not ended after {seconds:.0f} s, allowed "
                f"{limit:g}; a worker or its device hangs, or step_deadline_s is too short for a step"
            )
        return self._version

    def stats(self) -> dict[str, float]:
        """Totals since the start, and what is under way, as `quantity_unit`; raises nothing, also when broken."""
        stepper = self._stepper
        running, waiting = stepper.request_counts()
        return {
            **{f"{name}_total": float(count) for name, count in self._totals.items()},
            "running_requests": float(running),
            "waiting_requests": float(waiting),
            "version_updates": float(self._version),
            "swap_s": self._swap_s,
            "swap_s_max": self._swap_s_max,
            "busy_s_total": stepper.seconds_busy,
            "engine_steps_total": float(stepper.num_steps),
            "serving_frac": float(stepper.alive and self._refused is None),
        }

    # -- TextEngine

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """The `sampling.n` completions of a prompt, in sample order; all or none."""
        requests = self._sample_requests(prompt_ids, sampling)
        found: dict[int, Completion] = {}
        async with aclosing(self._answers(requests)) as answers:
            async for index, output in answers:
                found[index] = self._complete(output, sampling)
        return tuple(found[i] for i in range(sampling.n))

    async def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        """The completions as each ends, in any order; closing the generator aborts the others."""
        requests = self._sample_requests(prompt_ids, sampling)
        async with aclosing(self._answers(requests)) as answers:
            async for _, output in answers:
                yield self._complete(output, sampling)

    async def score(self, token_ids: Sequence[Sequence[int]], starts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
        """For each sequence, the logprobs of tokens [start, end) given what precedes them, at temperature 1.

        All come from one version: those of an older one are scored again, since what differs between them would be
        the update. A start must be >= 1: the first token has no context.
        """
        self._ready()
        if len(token_ids) != len(starts):
            raise ValueError(f"score needs one start per sequence (got {len(token_ids)} and {len(starts)})")
        for ids, start in zip(token_ids, starts, strict=True):
            if not 1 <= start <= len(ids) <= self.spec.max_model_len:
                raise ValueError(
                    f"score needs 1 <= start <= length <= {self.spec.max_model_len} "
                    f"(got start {start}, length {len(ids)})"
                )
        found: dict[int, tuple[int, tuple[float, ...]]] = {}
        todo = [i for i, ids in enumerate(token_ids) if starts[i] < len(ids)]
        while todo:
            found |= await self._score(token_ids, starts, todo)
            newest = max(version for version, _ in found.values())
            todo = [i for i, (version, _) in found.items() if version < newest]
        return tuple(found[i][1] if i in found else () for i in range(len(token_ids)))

    async def _score(
        self, token_ids: Sequence[Sequence[int]], starts: Sequence[int], todo: list[int]
    ) -> dict[int, tuple[int, tuple[float, ...]]]:
        """For each of the sequences `todo` a version and its logprobs."""
        found: dict[int, tuple[int, tuple[float, ...]]] = {}
        for read_cache in (True, False) if self._score_from_cache else (False,):
            requests = [(token_ids[i], score_params(read_cache=read_cache)) for i in todo]
            again: list[int] = []
            async with aclosing(self._answers(requests, restarts=True)) as answers:
                async for at, output in answers:
                    # The logprob of token t needs the hidden state of token t - 1, which a cached prefix does not have.
                    if read_cache and (output.num_cached_tokens or 0) > starts[todo[at]] - 1:
                        again.append(todo[at])
                    else:
                        found[todo[at]] = version_of(output), scored(output, starts[todo[at]])
            todo = again
        return found

    def expect_weights(self, handle: WeightsHandle) -> None:
        """Begin to read and load a payload beside those weights that serve; `load_weights` decides about it."""
        self._stepper.raise_if_broken()
        if self.spec.takes_weights:
            self._arrivals.expect(self._stepper.engine, handle)

    async def load_weights(self, handle: WeightsHandle) -> int:
        """The version now held, after verification; raises `WeightsRefused` and serves nothing otherwise.

        Where it did not come, `WireLost`, and what served serves on.
        """
        self._stepper.raise_if_broken()
        if not self.spec.takes_weights:
            raise WeightsRefused("this engine was started with takes_weights=False and takes no weights")
        engine, threads = self._stepper.engine, verify_threads(self.spec)
        arrival = await self._arrivals.of(engine, handle)
        try:
            manifest = await asyncio.to_thread(arrival.verify, handle, self._arrivals.contents, threads)
        except WeightsRefused as error:
            refused = error  # `error` itself is unbound once this block ends
            await self._between_steps(lambda _: self._refuse(refused))
            raise
        async with AsyncExitStack() as stack:
            source: dict[str, Any] | Twin | None = await self._loaded(arrival, manifest)
            if source is None:
                made = staged(engine, handle, self._arrivals.contents, arrival.source)
                source = await asyncio.to_thread(stack.enter_context, made)
            await self._between_steps(lambda _: self._swap(source, manifest))
        return manifest.version

    async def _loaded(self, arrival: Arrival, manifest: Manifest) -> Twin | None:
        """The verified weights, loaded beside those that serve, where the model can have that."""
        try:
            return arrival.twin_for(manifest)
        except Exception as error:
            failure = error

            def end(_: LLMEngine) -> None:
                raise EngineBroken(f"vLLM could not load version {manifest.version}: {failure!r}") from failure

            await self._between_steps(end)
            raise

    # -- on the stepping thread

    def _swap(self, source: dict[str, Any] | Twin, manifest: Manifest) -> None:
        try:
            limit_s = self.spec.swap_deadline_s
            seconds = swap(self._stepper, source, manifest, limit_s, keep=self.spec.running == "keep")
        except WeightsRefused as error:
            self._refuse(error)
            raise
        self._refused = None
        self._version = manifest.version
        self._totals["swaps"] += 1
        self._swap_s, self._swap_s_max = seconds, max(self._swap_s_max, seconds)

    def _refuse(self, error: WeightsRefused) -> None:
        """Serve nothing from here on, and fail what is under way."""
        self._refused = error
        self._totals["refused_swaps"] += 1
        self._stepper.fail_all(error)

    # -- on the caller's loop

    def _ready(self) -> None:
        self._stepper.raise_if_broken()
        if self._refused is not None:
            raise WeightsRefused(f"the engine serves nothing until good weights arrive: {self._refused}")

    def _sample_requests(self, prompt_ids: Sequence[int], sampling: Sampling) -> list[Request]:
        """One request per sample: they share the prompt's prefill through the prefix cache."""
        self._ready()
        room = self.spec.max_model_len - len(prompt_ids)
        if not prompt_ids or room < 1 or sampling.n < 1 or sampling.max_tokens < 1:
            raise ValueError(
                f"a prompt needs 1 to {self.spec.max_model_len - 1} tokens, n >= 1 and max_tokens >= 1 "
                f"(got {len(prompt_ids)} tokens, n={sampling.n}, max_tokens={sampling.max_tokens})"
            )
        limit = min(sampling.max_tokens, room)
        return [(prompt_ids, sampling_params(sampling, i, limit, self._vocab_size)) for i in range(sampling.n)]

    def _complete(self, output: RequestOutput, sampling: Sampling) -> Completion:
        done = completion(output, self.tokenizer, entropies=sampling.entropies)
        self._totals["generated_tokens"] += len(done.token_ids)
        return done

    async def _answers(
        self, requests: Sequence[Request], *, restarts: bool = False
    ) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Each request's index and output as it finishes; leaving early, failing or timing out frees the others."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, RequestOutput] | BaseException] = asyncio.Queue()

        def tell(item: tuple[int, RequestOutput] | BaseException) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        job = Job(requests, lambda index, output: tell((index, output)), tell, restarts=restarts)
        deadline = time.monotonic() + self.spec.deadline_s
        # Asked again on the stepping thread: what was sent during a swap waits for its end, and then for its verdict.
        self._stepper.submit(job, self._ready)
        left = len(requests)
        try:
            while left:
                try:
                    item = await asyncio.wait_for(queue.get(), max(deadline - time.monotonic(), 0.0))
                except TimeoutError as error:
                    raise PartTimeout(
                        f"engine {self.spec.model_path}: {left} of {len(requests)} requests unfinished after "
                        f"{self.spec.deadline_s:g} s"
                    ) from error
                if isinstance(item, BaseException):
                    raise item
                left -= 1
                self._count(item[1])
                yield item
        finally:
            if left:
                self._stepper.cancel(job)

    def _count(self, output: RequestOutput) -> None:
        self._totals["requests"] += 1
        self._totals["prompt_tokens"] += len(output.prompt_token_ids or ())
        self._totals["cached_prompt_tokens"] += output.num_cached_tokens or 0

    async def _between_steps(self, call: Callable[[LLMEngine], Any]) -> Any:
        future = asyncio.wrap_future(self._stepper.between_steps(call))
        try:
            return await asyncio.wait_for(future, 2 * self.spec.deadline_s)
        except TimeoutError as error:
            raise PartTimeout(
                f"engine {self.spec.model_path}: no step ended within {2 * self.spec.deadline_s:g} s"
            ) from error
