"""The evaluation job, and the solving job: what is missing of each suite, suite after suite, on `place.serving`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from capo_ray.config.evaluation import EvalConfig
from capo_ray.config.solve import DELIMITERS, SolveConfig
from capo_ray.evidence.critiques import votes_wanted
from capo_ray.flow.answering import Answering, Asked, ResponseFile, Row, missing
from capo_ray.flow.solving import Solve, Solving, unsolved
from capo_ray.place.serving import Crew, serve
from capo_ray.prompts import frame_question
from capo_ray.types import Problem

Judged = Mapping[str, tuple[str, Sequence[Problem]]]
"""By suite: the kind of its verifier, and its problems."""


def answer_suites(
    config: EvalConfig, suites: Judged, asked: Asked, file: ResponseFile, tell: Callable[[str], None]
) -> None:
    """Returns once the file holds every response; `tell` hears of what goes on, the name of a suite after each problem.

    Raises `RunFailed` or `RunStopped`; what was answered before is in the file.
    """
    wanted = {name: missing(problems, asked, file) for name, (_, problems) in suites.items()}

    async def work(crew: Crew) -> None:
        sampling = replace(asked.sampling, stop_token_ids=crew.stop_token_ids, stop_strings=config.model.stop_strings)
        for name, problems in wanted.items():
            tell(name)
            answering = Answering(
                replace(asked, sampling=sampling),
                crew.engine,
                lambda problem: frame_question(crew.tokenizer, problem.prompt, config.model),
                file,
                in_flight=crew.in_flight,
                gpus=config.engine.num_workers * config.engine.num_gpus,
                tell=partial(tell, name),
            )
            await answering.answer(problems, crew.verifiers[suites[name][0]])

    serve(config, {kind for kind, _ in suites.values()}, file.path.parent, work, tell, "eval")


def solve_suites(
    config: SolveConfig, suites: Judged, file: ResponseFile, tell: Callable[[str], None], show: Callable[[Row], None]
) -> None:
    """Returns once the file holds a solution of every problem; `show` gets each as it is found, `tell` as above."""
    wanted = {name: unsolved(problems, file) for name, (_, problems) in suites.items()}

    async def work(crew: Crew) -> None:
        how = Solve(
            config.settled_search,
            config.steps,
            DELIMITERS[config.steps.segmenter] if config.search.draws_steps else "",
            votes_wanted(config.serving()),
            config.rollout.max_response_tokens,
            config.model.max_model_len,
            config.run.seed,
            crew.stop_token_ids,
            config.model.stop_strings,
        )
        for name, problems in wanted.items():
            tell(name)
            solving = Solving(
                how,
                crew.engine,
                crew.tokenizer,
                crew.judge,
                lambda problem: frame_question(crew.tokenizer, problem.prompt, config.model),
                file,
                crew.in_flight,
                tell=partial(tell, name),
                show=show,
            )
            await solving.solve(problems, crew.verifiers[suites[name][0]], suites[name][0])

    serve(config, {kind for kind, _ in suites.values()}, file.path.parent, work, tell, "solve")
