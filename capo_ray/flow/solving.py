"""A suite's problems through a search and the verifier, each solution kept as soon as it is judged.

    problem not in the file -> search (policy, critic) -> verifier -> row in the file

Invariants: as of `flow.answering`; a problem's draws depend on the seed and its name alone, whatever else is solved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from capo_ray.answers import extract_answer, extract_choice
from capo_ray.config.search import SearchBase
from capo_ray.config.seeds import draw_seed
from capo_ray.config.steps import StepsBase
from capo_ray.evaluation import Judgement, estimate, shares, spelt
from capo_ray.flow.answering import ResponseFile, Row, ask_all, encode_all
from capo_ray.protocols import Judge, RunFailed, Sampling, TextEngine, Tokenizer, Verifier
from capo_ray.search import Asking, Critic, Found, Spent, Writer, look_for
from capo_ray.steps import split_text
from capo_ray.types import Problem, Verdict

MEANS = (
    *("policy_tokens", "critic_tokens", "critic_prompt_tokens", "num_draws", "judged_steps", "judgements"),
    *("backtracks", "exhausted", "flags", "agreement_frac"),
)
"""Columns of a solution's row whose mean over problems is told, where the search has them."""


@dataclass(frozen=True, slots=True)
class Solve:
    """How each problem is solved."""

    search: SearchBase
    steps: StepsBase
    delimiter: str
    """Ends a step, where the search draws step by step."""
    num_votes: int
    max_tokens: int
    max_len: int
    seed: int
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()


@dataclass
class Solving:
    """Solves what is missing; `tell` hears of each problem, `show` of each row."""

    how: Solve
    engine: TextEngine
    tokenizer: Tokenizer
    judge: Judge | None
    encode: Callable[[Problem], Sequence[int]]
    file: ResponseFile
    in_flight: int
    tell: Callable[[], None] = lambda: None
    show: Callable[[Row], None] = lambda _: None

    async def solve(self, problems: Sequence[Problem], verifier: Verifier, kind: str) -> None:
        """Returns once the file holds all; `RunFailed` at the end where some requests failed."""
        prompts = encode_all(problems, self.encode, self.how.max_len)
        failures = await ask_all(
            problems, self.in_flight, lambda problem: self._one(problem, prompts[problem.id], verifier, kind)
        )
        if failures:
            raise RunFailed(
                f"{len(failures)} of {len(problems)} problems of {problems[0].source} have no solution: {failures[0]}; "
                f"try them again: capo-ray solve resume={self.file.path.parent}"
            )

    async def _one(self, problem: Problem, prompt_ids: tuple[int, ...], verifier: Verifier, kind: str) -> None:
        began = time.monotonic()
        spent = Spent()
        found = await look_for(self._asking(problem, prompt_ids, kind, spent), self.how.search)
        verdict = Verdict(None, "no answer is given", _extract(found.text, kind))
        if problem.answer:
            (verdict,) = await verifier.verify(problem.answer, [found.text])
        row = to_row(problem, found, verdict, spent) | {"wall_s": round(time.monotonic() - began, 4)}
        self.file.add([row])
        self.show(row)
        self.tell()

    def _asking(self, problem: Problem, prompt_ids: tuple[int, ...], kind: str, spent: Spent) -> Asking:
        how = self.how
        room = min(how.max_tokens, how.max_len - len(prompt_ids))
        sampling = Sampling(
            how.search.temperature,
            how.search.top_p if how.search.temperature else 1.0,
            room,
            stop_token_ids=how.stop_token_ids,
            stop_strings=how.stop_strings,
        )
        writer = Writer(
            self.engine,
            self.tokenizer.decode,
            prompt_ids,
            sampling,
            seed=draw_seed(how.seed, "solve", problem.source, problem.id),
            spent=spent,
            delimiter=how.delimiter,
        )
        critic = None if self.judge is None else Critic(self.judge, problem, how.num_votes, spent)
        return Asking(writer, critic, partial(split_text, steps=how.steps), partial(_answer, kind=kind), spent)


def unsolved(problems: Sequence[Problem], file: ResponseFile) -> list[Problem]:
    """The problems that have no solution in the file."""
    return [problem for problem in problems if not file.of(problem.source, problem.id)]


def to_row(problem: Problem, found: Found, verdict: Verdict, spent: Spent) -> Row:
    """A solution as it is kept and shown."""
    return {
        "suite": problem.source,
        "problem": problem.id,
        "sample": 0,
        "question": problem.prompt,
        "answer": problem.answer,
        "response": found.text,
        "finish": "length" if found.cut else "stop",
        "tokens": found.num_tokens,
        "extracted": verdict.extracted,
        "reward": verdict.reward,
        "reason": verdict.reason,
        **asdict(spent),
        **found.figures,
    }


def solve_figures(problems: Sequence[Problem], suite: str, file: ResponseFile) -> dict[str, Any]:
    """The figures of a suite: accuracy with its interval, and the mean of each cost per problem."""
    rows = [row for problem in problems for row in file.of(suite, problem.id).values()]
    rewards = [float(row["reward"]) for row in rows if row["reward"] is not None]
    told: dict[str, Any] = {"num_problems": len(rows)}
    if rewards:
        accuracy = estimate(rewards)
        told |= {"accuracy": accuracy.value, "ci95": accuracy.ci95}
    for name in MEANS:
        if values := [row[name] for row in rows if name in row]:
            told[name.replace("exhausted", "exhausted_frac")] = sum(values) / len(values)
    told["total_tokens"] = told.get("policy_tokens", 0.0) + told.get("critic_tokens", 0.0)
    judged = [Judgement(row["reward"], row["extracted"], row["finish"] == "length", row["tokens"]) for row in rows]
    return told | shares(judged)


def _extract(text: str, kind: str) -> str | None:
    return extract_choice(text)[0] if kind == "choice" else extract_answer(text)


def _answer(text: str, kind: str) -> str | None:
    found = _extract(text, kind)
    return None if found is None else spelt(found)
