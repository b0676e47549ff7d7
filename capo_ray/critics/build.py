"""Wires a judge from its configuration: which backend, which store, which watch around it."""

from __future__ import annotations

from collections.abc import Callable

from capo_ray.config.sections import CriticConfig
from capo_ray.critics.calculator import CalculatorJudge
from capo_ray.critics.canary import CanaryWatch, JudgeWithStats, load_cases
from capo_ray.critics.ensemble import EnsembleJudge
from capo_ray.critics.guarded import StoreDoor
from capo_ray.critics.judge import Judge
from capo_ray.critics.oracle import OracleJudge, Truth
from capo_ray.critics.panel import Panel
from capo_ray.critics.store import CritiqueStore
from capo_ray.protocols import StreamingEngine, Tokenizer


def build_judge(
    config: CriticConfig,
    *,
    vote: str,
    quorum: int,
    store: CritiqueStore | StoreDoor | None = None,
    engine: StreamingEngine | None = None,
    tokenizer: Tokenizer | None = None,
    model_revision: str = "",
    truth: Truth | None = None,
) -> JudgeWithStats:
    """The judge that `config` describes; `backend=vllm` needs the critic's engine and tokenizer, `oracle` the truth.

    A judge lives in one event loop. Raises `ValueError` on a configuration that cannot work.
    """

    def build(own: CritiqueStore | StoreDoor | None) -> JudgeWithStats:
        return _with_calculator(config, lambda c: _build_first(c, own), vote, quorum)

    def _build_first(config: CriticConfig, own: CritiqueStore | StoreDoor | None) -> Panel:
        if config.backend == "calculator":
            return CalculatorJudge(config, vote=vote, quorum=quorum)
        if config.backend == "endpoint":
            from capo_ray.critics.endpoint import EndpointJudge  # aiohttp is for this backend only

            return EndpointJudge(config, vote=vote, quorum=quorum, store=own)
        if config.backend == "oracle":
            if truth is None:
                raise ValueError("critic.backend=oracle needs problems whose steps are known (got none)")
            return OracleJudge(truth, config, vote=vote, quorum=quorum)
        if engine is None or tokenizer is None:
            raise ValueError("critic.backend=vllm needs an engine and its tokenizer (got none)")
        return Judge(engine, tokenizer, config, vote=vote, quorum=quorum, model_revision=model_revision, store=own)

    judge = build(store)
    if not config.canary_every:
        return judge
    return CanaryWatch(
        judge,
        build(None),
        load_cases(config.canary_path, config.rubric),
        every=config.canary_every,
        least=config.canary_min_recall,
        num_votes=config.num_votes,
        vote=vote,
    )


def _with_calculator(
    config: CriticConfig, build: Callable[[CriticConfig], Panel], vote: str, quorum: int
) -> JudgeWithStats:
    if not config.with_calculator or config.backend == "calculator":
        return build(config)
    # What is decided among the critic's own votes is open until the calculator has voted.
    first = build(config.model_copy(update={"early_stop": False}))
    return EnsembleJudge(first, [CalculatorJudge(config, vote=vote, quorum=1)])
