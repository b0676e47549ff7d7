"""A suite's problems through the engines and the verifier, each response kept as soon as it is judged.

    problem -> what of its responses is not in the file -> engine -> verifier -> rows in the file

Invariants: a row is written whole or not read again; response i of a problem has the seed it would have had without any
interruption; what is in the file is never asked for again.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from capo_ray.config.seeds import draw_seed
from capo_ray.environments import SingleTurn
from capo_ray.evaluation import Judgement, figures
from capo_ray.flow.evaluate import Answered, ask
from capo_ray.metrics.rows import read_rows
from capo_ray.protocols import PartLost, PartTimeout, RunFailed, Sampling, TextEngine, Verifier
from capo_ray.types import Problem

GREEDY = "greedy"
"""In the place of a sample's number."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What each problem is asked for; `max_len` is that of prompt and response together."""

    sampling: Sampling
    num_samples: int
    greedy: bool
    seed: int
    max_len: int

    def requests(self, problem: Problem, there: Mapping[Any, Row], room: int) -> Iterator[tuple[list[Any], Sampling]]:
        """Names of the responses that are not `there`, and how to sample them; `room`: tokens left for a response."""
        first = draw_seed(self.seed, "suite", problem.source, problem.id)
        one = replace(self.sampling, max_tokens=min(self.sampling.max_tokens, room))
        missing = [i for i in range(self.num_samples) if i not in there]
        while missing:
            run = [i for n, i in enumerate(missing) if i == missing[0] + n]
            missing = missing[len(run) :]
            yield run, replace(one, n=len(run), seed=first + run[0])
        if self.greedy and GREEDY not in there:
            yield [GREEDY], replace(one, temperature=0.0, top_p=1.0, n=1, seed=first)


@dataclass
class ResponseFile:
    """The responses of an evaluation, by suite, problem and sample."""

    path: Path
    rows: dict[tuple[str, str], dict[Any, Row]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> ResponseFile:
        """The file with what it holds; a line that a crash has torn is cut off."""
        file = cls(path)
        for row in read_rows(path):
            file._keep(row)
        if path.is_file():
            with path.open("r+b") as raw:
                raw.truncate(raw.read().rfind(b"\n") + 1)
        return file

    def of(self, suite: str, problem: str) -> Mapping[Any, Row]:
        """The responses to a problem by sample."""
        return self.rows.get((suite, problem), {})

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows, in one write."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(lines.encode())
            while view:
                view = view[os.write(fd, view) :]
        except OSError as error:
            raise RunFailed(f"{self.path} could not be written: {error.strerror}; make room") from error
        finally:
            os.close(fd)
        for row in rows:
            self._keep(row)

    def _keep(self, row: Row) -> None:
        self.rows.setdefault((row["suite"], row["problem"]), {})[row["sample"]] = row


def encode_all(
    problems: Sequence[Problem], encode: Callable[[Problem], Sequence[int]], max_len: int
) -> dict[str, tuple[int, ...]]:
    """The prompts by problem; raises `RunFailed` where one leaves no room, before any is asked for."""
    prompts = {problem.id: tuple(encode(problem)) for problem in problems}
    longest = max(map(len, prompts.values()), default=0)
    if longest >= max_len:
        raise RunFailed(
            f"a prompt of {problems[0].source} has {longest} tokens, expected < model.max_model_len={max_len}; raise "
            "it, or lower eval.limit"
        )
    return prompts


async def ask_all(
    problems: Sequence[Problem], in_flight: int, ask: Callable[[Problem], Awaitable[None]]
) -> Sequence[str]:
    """Ask for each, so many at once; why some were lost, the others being done."""
    gate, failures = asyncio.Semaphore(in_flight), list[str]()

    async def one(problem: Problem) -> None:
        async with gate:
            try:
                await ask(problem)
            except (PartTimeout, PartLost) as error:
                failures.append(str(error))

    async with asyncio.TaskGroup() as tasks:
        for problem in problems:
            tasks.create_task(one(problem))
    return failures


@dataclass
class Answering:
    """Asks for what is missing of suites; `tell` hears of each problem's new responses."""

    asked: Asked
    engine: TextEngine
    encode: Callable[[Problem], Sequence[int]]
    file: ResponseFile
    in_flight: int
    """Responses under way at once: the engines' places, and some more to wait for them."""
    gpus: float = 0.0
    tell: Callable[[], None] = lambda: None

    async def answer(self, problems: Sequence[Problem], verifier: Verifier) -> None:
        """Returns once the file holds all; `RunFailed` at the end where some requests failed."""
        prompts = encode_all(problems, self.encode, self.asked.max_len)
        self._last = time.monotonic()
        width = max(1, self.in_flight // self.asked.num_samples)
        failures = await ask_all(problems, width, lambda problem: self._one(problem, prompts[problem.id], verifier))
        if failures:
            raise RunFailed(
                f"{len(failures)} of {len(problems)} problems of {problems[0].source} have no response: {failures[0]}; "
                f"ask for them again: capo-ray eval resume={self.file.path.parent}"
            )

    async def _one(self, problem: Problem, prompt_ids: Sequence[int], verifier: Verifier) -> None:
        there, room = self.file.of(problem.source, problem.id), self.asked.max_len - len(prompt_ids)
        for names, sampling in self.asked.requests(problem, there, room):
            answered = await ask(SingleTurn(self.engine), verifier, prompt_ids, problem, sampling)
            now = time.monotonic()
            # The seconds since the responses before: over a file they are those of the work, whatever interrupted it.
            spent, self._last = now - self._last, now
            rows = [_to_row(problem, name, one) for name, one in zip(names, answered, strict=True)]
            rows[0] |= {"wall_s": round(spent, 4), "gpu_s": round(spent * self.gpus, 4)}
            self.file.add(rows)
        self.tell()


def missing(problems: Sequence[Problem], asked: Asked, file: ResponseFile) -> list[Problem]:
    """The problems with responses that are not in the file."""
    return [p for p in problems if any(True for _ in asked.requests(p, file.of(p.source, p.id), asked.max_len))]


def _to_row(problem: Problem, name: Any, answered: Answered) -> Row:
    completion, verdict = answered
    return {
        "suite": problem.source,
        "problem": problem.id,
        "sample": name,
        "question": problem.prompt,
        "answer": problem.answer,
        "response": completion.text,
        "finish": completion.finish,
        "tokens": len(completion.token_ids),
        "extracted": verdict.extracted,
        "reward": verdict.reward,
        "reason": verdict.reason,
    }


def suite_figures(problems: Sequence[str], suite: str, asked: Asked, file: ResponseFile) -> dict[str, Any]:
    """The figures of a suite from the responses to these problems, throughput and cost among them."""
    rows = {name: file.of(suite, name) for name in problems}
    sampled = {name: [_judgement(there[i]) for i in range(asked.num_samples)] for name, there in rows.items()}
    greedy = {name: _judgement(there[GREEDY]) for name, there in rows.items() if asked.greedy}
    if asked.sampling.temperature == 0:
        greedy = {name: judged[0] for name, judged in sampled.items()}
    every = [row for there in rows.values() for row in there.values()]
    wall_s = sum(row.get("wall_s", 0.0) for row in every)
    return figures(sampled, greedy) | {
        "tokens_per_s": sum(row["tokens"] for row in every) / wall_s if wall_s else 0.0,
        "wall_s": wall_s,
        "gpu_s": sum(row.get("gpu_s", 0.0) for row in every),
    }


def problem_scores(suite: str, file: ResponseFile) -> tuple[dict[str, float], dict[str, float]]:
    """The share of right responses to each problem, of sampled ones and of the greedy one, where any was judged."""
    sampled, greedy = dict[str, float](), dict[str, float]()
    for (source, problem), there in file.rows.items():
        if source != suite:
            continue
        rewards = [row["reward"] for name, row in there.items() if name != GREEDY and row["reward"] is not None]
        if rewards:
            sampled[problem] = sum(rewards) / len(rewards)
        if GREEDY in there and there[GREEDY]["reward"] is not None:
            greedy[problem] = float(there[GREEDY]["reward"])
    return sampled, greedy


def _judgement(row: Row) -> Judgement:
    return Judgement(row["reward"], row["extracted"], row["finish"] == "length", row["tokens"])
