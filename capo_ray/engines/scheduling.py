"""What this house does to vLLM's scheduler between two steps; nothing else here touches its insides.

    drain: no step in flight | canary_alone: nobody else is admitted | forget: nobody reads keys of older weights

Invariants: after `drain` every token that was scheduled has been handed on; after `forget` a request that has not begun
finds no key or value of older weights, and with `keep=False` nor does one that is running.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

RECOMPUTE_TOKENS = 2048
"""Most tokens of a step while running sequences are computed anew: enough to fill a GPU, few enough that those which
are back decode on beside the others' prefill."""


def core_of(engine: LLMEngine) -> Any:
    """vLLM's engine core, which lives in this process."""
    client: Any = engine.engine_core
    return client.engine_core


def in_flight(engine: LLMEngine) -> bool:
    """Whether a step was scheduled whose tokens have not come yet (asynchronous scheduling)."""
    return bool(core_of(engine).batch_queue)


@contextmanager
def nothing_scheduled(engine: LLMEngine) -> Iterator[None]:
    """Steps made inside schedule nothing; they only take in what is in flight."""
    from vllm.v1.core.sched.interface import PauseState

    scheduler = core_of(engine).scheduler
    scheduler.set_pause_state(PauseState.PAUSED_ALL)
    try:
        yield
    finally:
        scheduler.set_pause_state(PauseState.UNPAUSED)


@contextmanager
def canary_alone(engine: LLMEngine, tokens: int) -> Iterator[None]:
    """Inside, one request of `tokens` tokens is admitted, the first in order; what runs already goes on."""
    scheduler = core_of(engine).scheduler
    pool = scheduler.kv_cache_manager.block_pool
    # Each that runs may want a block before the canary has its own.
    while scheduler.running and pool.get_num_free_blocks() < -(-tokens // scheduler.block_size) + len(
        scheduler.running
    ):
        scheduler._preempt_request(scheduler.running.pop(), 0.0)
    usual = scheduler.max_num_active_reqs
    scheduler.max_num_active_reqs = len(scheduler.running) + 1
    try:
        yield
    finally:
        scheduler.max_num_active_reqs = usual


def forget(engine: LLMEngine, salt: str, *, keep: bool) -> None:
    """Let nobody read keys and values of older weights; call with nothing in flight.

    With `keep`, running sequences go on with their own old ones, which no other request finds: who waits looks under
    the new salt, and who must be computed again (it was preempted) does not look at all.
    """
    scheduler = core_of(engine).scheduler
    if not keep:
        engine.reset_prefix_cache(reset_running_requests=True)
        return
    from vllm.v1.request import RequestStatus

    for request in scheduler.running:
        request.skip_reading_prefix_cache = True
    for request in scheduler.waiting:
        if request.status == RequestStatus.PREEMPTED:
            request.skip_reading_prefix_cache = True
        else:
            request.cache_salt = salt
            request.block_hashes.clear()
            request.update_block_hashes()


class Pace:
    """Bounds the tokens of a step from `slow` on until every sequence that was sent back is running again."""

    def __init__(self, engine: LLMEngine, max_model_len: int, *, whole_prompts: bool) -> None:
        self._scheduler = core_of(engine).scheduler
        self._usual: int = self._scheduler.max_num_scheduled_tokens
        # Where prompts are computed whole, the longest one must fit beside a token of each other.
        least = max_model_len + self._scheduler.max_num_running_reqs if whole_prompts else 0
        self._bound = min(self._usual, max(RECOMPUTE_TOKENS, least))
        self._sent_back: set[Any] = set()

    def slow(self) -> None:
        """All who ran were sent back just now."""
        self._sent_back = {request for request in self._scheduler.waiting if request.num_preemptions}
        if self._sent_back:
            self._scheduler.max_num_scheduled_tokens = self._bound

    def after_step(self) -> None:
        """Back to the usual once none of them waits."""
        if self._sent_back:
            self._sent_back &= set(self._scheduler.waiting)
            if not self._sent_back:
                self._scheduler.max_num_scheduled_tokens = self._usual
