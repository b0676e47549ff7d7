"""Credit, critiques and verdicts for responses that somebody else sampled: lists in, lists out, in their order."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from capo_ray.api.running import Config, to_overrides
from capo_ray.cli import prefer_own_programs
from capo_ray.cli.credit import read_settings
from capo_ray.cli.critique import cuts_anew, setting_of
from capo_ray.cli.critique_judging import judge_settings
from capo_ray.cli.verify import WINDOW, config_of, pair_of
from capo_ray.config.base import RuleError
from capo_ray.credit import EvidenceError
from capo_ray.critics.judgement import Judgement
from capo_ray.critics.solutions import read_solutions
from capo_ray.evidence import FieldError
from capo_ray.evidence.offline import assign, over_tokens, read_group
from capo_ray.protocols import PartLost, RunFailed
from capo_ray.types import Judged, Span, Verdict
from capo_ray.verifiers import VerifierPool

T = TypeVar("T")
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CreditedResponse:
    """The credit of one response of T tokens and K steps."""

    advantages: Numbers
    """[T]; 0 for tokens that the policy read."""
    token_rewards: Numbers
    """[T]: what the advantages were made of."""
    steps: tuple[Span, ...]
    """[K] half-open spans of tokens."""
    wrong: tuple[float, ...]
    """[K]: the weight of each step as a wrong one, 0 to 1; () of a method without critiques."""
    included: bool
    """Whether the response counts in the group; one without a verdict does not, and has zeros."""


@dataclass(frozen=True, slots=True, eq=False)
class CreditedGroup:
    """The credit of the responses to one problem, in their order, and the figures of its audit."""

    id: str | int
    responses: tuple[CreditedResponse, ...]
    audit: dict[str, float]


def credit(
    groups: Iterable[Mapping[str, Any]],
    method: str = "capo",
    config: Config = (),
    *,
    rubric: str = "paper",
    progress: float = 0.0,
) -> list[CreditedGroup]:
    """The credit of judged groups, each a mapping as `capo-ray credit --help` names its fields (arrays are taken too).

    `config` has keys of `credit` and `steps`; `rubric` says how texts of critiques are read; `progress` is the share of
    a run that is done, for methods with a schedule. Raises `RunFailed` naming the group (counted from 1) and field.
    """
    credit_config, steps, cut_anew = read_settings(method, to_overrides(config), progress)
    credited = []
    for number, given in enumerate(groups, 1):
        try:
            line = json.dumps({"id": number, **given}, default=_to_list)
            name, group = read_group(line, credit_config, rubric, steps, cut_anew=cut_anew)
            whole, audit = assign(group, credit_config, progress)
        except (FieldError, EvidenceError, TypeError) as error:
            raise RunFailed(f"group {number}: {error}") from None
        except RuleError as error:
            raise RunFailed(f"group {number}: {error}") from error
        responses = tuple(
            CreditedResponse(
                _over_tokens(member, whole.advantages[i]),
                _over_tokens(member, whole.token_rewards[i]),
                tuple(member.steps),
                tuple(whole.step_weights[i]),
                bool(whole.included[i]),
            )
            for i, member in enumerate(group.members)
        )
        credited.append(CreditedGroup(name, responses, audit))
    return credited


def critique(solutions: Iterable[Mapping[str, Any]], config: Config = ()) -> list[Judgement]:
    """The critiques of solutions, each a mapping as `capo-ray critique --help` shows: question, and steps or response.

    `config` is that of a run: `{"critic": "laptop"}`, `{"critic": {"backend": "endpoint", …, "num_votes": 4}}`. Each
    `Judgement` has `critiques` and `voted(k, vote)`: the steps held to be wrong. Raises `RunFailed`.
    """
    prefer_own_programs()
    overrides = to_overrides(config)
    setting, cut_anew = setting_of(overrides, ""), cuts_anew(overrides)
    rows = ((f"solutions:{number}", dict(row)) for number, row in enumerate(solutions, 1))
    say: Callable[[str], None] = partial(print, file=sys.stderr)
    read = list(read_solutions(rows, setting.config.steps, 0, say, cut_anew=cut_anew))
    if not read:
        return []
    ((judgements, _),) = _finish(judge_settings([setting], read))
    return judgements


def verify(
    pairs: Iterable[tuple[Any, str] | Mapping[str, Any]],
    kind: str = "math",
    *,
    path: str | None = None,
    tolerance: float | None = None,
    timeout_s: float | None = None,
    num_processes: int | None = None,
) -> list[Verdict]:
    """The verdict on each pair of an answer and a response: reward 1, 0 or None (undecided), reason, extracted answer.

    `kind` and the rest are as in `capo-ray verify --help`. Raises `RunFailed` naming the pair (counted from 1) that
    does not fit.
    """
    config = config_of(
        kind=kind, path=path, tolerance=tolerance, timeout_s=timeout_s, num_processes=num_processes
    )  # fmt: skip
    read = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, Mapping) and (isinstance(pair, str) or len(pair) != 2):
            raise RunFailed(f"pair {number}: expected an answer and a response, got {str(pair)[:40]!r}")
        row = pair if isinstance(pair, Mapping) else dict(zip(("answer", "response"), pair, strict=True))
        fitting = pair_of(row)
        if isinstance(fitting, str):
            raise RunFailed(f"pair {number}: {fitting}")
        read.append(fitting)
    with VerifierPool(config) as pool:
        try:
            return _finish(_verdicts(pool, read))
        except PartLost as error:
            raise RunFailed(str(error)) from None


async def _verdicts(pool: VerifierPool, pairs: list[tuple[str, str]]) -> list[Verdict]:
    slots = asyncio.Semaphore(WINDOW)

    async def judge(answer: str, response: str) -> Verdict:
        async with slots:
            (verdict,) = await pool.verify(answer, [response])
            return verdict

    return list(await asyncio.gather(*(judge(*pair) for pair in pairs)))


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; where an event loop runs already, as in a notebook, in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _over_tokens(member: Judged, row: Any) -> Numbers:
    return np.asarray(over_tokens(member, row), dtype=np.float64)


def _to_list(value: Any) -> Any:
    """An array or scalar of numpy or torch as JSON has it."""
    if not hasattr(value, "tolist"):
        raise FieldError(f"expected texts, numbers, lists and arrays, got {type(value).__name__}")
    return value.tolist()
