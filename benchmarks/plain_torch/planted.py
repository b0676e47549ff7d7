"""Responses with planted errors, and critics of known quality: the test bed of the credit-fidelity benchmark.

    slip        one wrong result near the end
    carried     one wrong result near the start: most later steps are right but carry a wrong number forward
    operation   one step computes another operator or digit than the problem's, and computes it rightly
    lucky       two wrong results, the second of which puts the first right: a right answer from wrong steps
    clean       no error

In the first three kinds the answer is wrong, in `lucky` it is right; chains that would have it otherwise are redrawn.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capo_ray.flow import GroupWay, Parts
from capo_ray.learners.microbatch import to_inputs
from capo_ray.loss import token_logprobs
from capo_ray.problems.chains import (
    Chain,
    ChainProblem,
    apply,
    make_problem,
    response_text,
    shown_answer,
    true_wrong_steps,
)
from capo_ray.protocols import Judge, JudgeRequest, RewardModel, Sampling, step_texts
from capo_ray.types import Completion, Critique, Group, Problem, VersionRun
from plain_torch.arms import parse_arm
from plain_torch.engine import PlainEngine
from plain_torch.parts import build_parts, compose

GROUP = ("clean", "clean", "slip", "carried", "operation", "lucky", "lucky", "slip")
"""The kinds of the siblings of every group: half of the answers are right, half of those by luck."""
Planted = tuple[ChainProblem, Sequence[str]]  # a problem and its responses


class Silence:
    """A tracker, progress and transcripts that nobody reads."""

    def log(self, metrics: Mapping[str, float], *, update: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def update(self, **figures: Any) -> None:
        """Nothing."""

    def write_group(self, *arguments: Any) -> None:
        """Nothing."""


class PlantedEngine(PlainEngine):
    """An engine that answers each prompt of `texts` once with the responses there, tokens and logprobs its own."""

    def __init__(self, path: str | Path, seed: int, texts: dict[tuple[int, ...], Sequence[str]]) -> None:
        super().__init__(path, seed)
        self._texts = texts

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        """As `TextEngine.generate`; what follows the group's own responses is sampled."""
        texts = self._texts.pop(tuple(prompt_ids), None)
        return await super().generate(prompt_ids, sampling) if texts is None else self._spell(prompt_ids, texts)

    @torch.no_grad()
    def _spell(self, prompt_ids: Sequence[int], texts: Sequence[str]) -> tuple[Completion, ...]:
        ids = [(*self.tokenizer.encode(text), self.model.eos) for text in texts]
        rows = [(*prompt_ids, *row) for row in ids]
        inputs = to_inputs(rows, [len(prompt_ids)] * len(rows), torch.device("cpu"))
        hidden = self.model.forward(inputs.input_ids).flatten(0, 1).index_select(0, inputs.predictors)
        figures = (
            x.split([len(row) for row in ids]) for x in token_logprobs(self.model.logits(hidden), inputs.targets)
        )
        pieces = [self.tokenizer.decode_pieces(row) for row in ids]
        return tuple(
            Completion(
                np.array(row), logprobs.numpy(), np.array(ends), text, (VersionRun(0, len(row)),), "stop",
                entropies.numpy(),
            )
            for row, logprobs, entropies, (text, ends) in zip(ids, *figures, pieces, strict=True)
        )  # fmt: skip


class World:
    """Planted groups of some lengths, and what a policy and its critic say of them, gathered by the shipped way."""

    def __init__(self, policy: str | Path, critic: str | Path, lengths: Sequence[int], per_length: int) -> None:
        self.lengths, self._policy, self._critic = list(lengths), str(policy), str(critic)
        self._planted = [plant_group(length, index) for length in self.lengths for index in range(per_length)]
        self.groups = self.gather("credit=grpo")
        self.truth = [truth for group in self.groups for truth in truth_of(group)]

    def gather(
        self, text: str, seed: int = 0, judge: Judge | None = None, reward_model: RewardModel | None = None
    ) -> list[Group]:
        """The groups with the evidence that an arm's credit rule asks for; `judge` and `reward_model` in its place."""
        with tempfile.TemporaryDirectory() as folder:
            parts = self._parts(text, seed, Path(folder))
            encode = GroupWay(parts).encode_prompt
            texts = {encode(problem): texts for problem, texts in self._planted}
            parts = replace(
                parts,
                engine=PlantedEngine(self._policy, seed, texts),
                judge=judge or parts.judge,
                reward_model=reward_model or parts.reward_model,
            )
            return asyncio.run(_walk(parts, [problem for problem, _ in self._planted]))

    def roll_out(self, num_batches: int, groups_per_batch: int) -> list[list[Group]]:
        """Batches of the policy's own groups, of each length in turn."""
        with tempfile.TemporaryDirectory() as folder:
            parts = self._parts("credit=grpo", 0, Path(folder))
            batches = []
            for batch in range(num_batches):
                length = self.lengths[batch % len(self.lengths)]
                problems = [make_problem(0, groups_per_batch * batch + i, length) for i in range(groups_per_batch)]
                batches.append(asyncio.run(_walk(parts, problems)))
            return batches

    def train(self, text: str, batches: Sequence[Sequence[Group]]) -> RewardModel:
        """The reward model of an arm's credit rule, trained on these batches."""
        with tempfile.TemporaryDirectory() as folder:
            model = self._parts(text, 0, Path(folder)).reward_model
            assert model is not None
            for batch in batches:
                asyncio.run(model.update(batch))
            return model

    def _parts(self, text: str, seed: int, folder: Path) -> Parts:
        arm, longest = parse_arm("planted", text), max(self.lengths)
        words = [
            f"model.path={self._policy}", f"run.seed={seed}", f"rollout.max_response_tokens={6 * longest + 16}",
            f"rollout.group_size={len(GROUP)}",
        ]  # fmt: skip
        return build_parts(compose(arm, self._critic, words, longest), arm, self._critic, folder, Silence())[0]


async def _walk(parts: Parts, problems: Sequence[Problem]) -> list[Group]:
    """The groups of the problems, all under way at once."""
    way = GroupWay(parts)
    walks = [way.walk(index, problem, 0, 0.0) for index, problem in enumerate(problems)]
    return [credited.group for credited in await asyncio.gather(*walks)]


def truth_of(group: Group) -> list[frozenset[int]]:
    """For each response the steps that are really wrong."""
    responses = [(m.trajectory.response, m.steps) for m in group.members]
    return [true_wrong_steps(group.problem, step_texts(r.text, r.char_ends, steps)) for r, steps in responses]


def plant_group(length: int, index: int) -> Planted:
    """A problem with one response of each kind of a group."""
    rng = random.Random(f"planted/{length}/{index}")
    problem = make_problem(1, index, length, "held_out")
    while (texts := plant_all(problem, rng)) is None:
        problem = make_problem(1, rng.randrange(10**9), length, "held_out")
    return problem, texts


def plant_all(problem: ChainProblem, rng: random.Random, tries: int = 30) -> list[str] | None:
    """One response of each kind of a group, or None where the chain allows one of them hardly ever."""
    texts = []
    for kind in GROUP:
        for _ in range(tries):
            steps = plant(problem.chain, kind, rng)
            text = response_text(steps)
            right = shown_answer(text) == problem.answer
            wrong = true_wrong_steps(problem, steps)
            if right == (kind in ("clean", "lucky")) and len(wrong) == {"clean": 0, "lucky": 2}.get(kind, 1):
                texts.append(text)
                break
        else:
            return None
    return texts


def plant(chain: Chain, kind: str, rng: random.Random) -> tuple[str, ...]:
    """The steps of one response with an error of this kind."""
    count = len(chain.operations)
    third = max(1, count // 3)
    start, end = {"slip": (count - third, count), "carried": (0, third), "lucky": (0, count - 1)}.get(kind, (0, count))
    at = rng.randrange(start, end)
    mend = rng.randrange(at + 1, count) if kind == "lucky" else -1
    value = truth = chain.start
    steps = []
    for k, (operator, digit) in enumerate(chain.operations):
        truth = apply(truth, operator, digit)
        if kind == "operation" and k == at:
            others = [(o, d) for o in "+-*" for d in range(10) if (o == operator) != (d == digit)]
            operator, digit = rng.choice(others)
        result = apply(value, operator, digit)
        if kind in ("slip", "carried", "lucky") and k == at:
            result = (result + rng.randrange(1, 10)) % 10
        if k == mend:
            result = truth
        steps.append(f"{value}{operator}{digit}={result}")
        value = result
    return (*steps, f"\\boxed{{{value}}}")


class HalfShared:
    """The votes of another judge, on half of the steps those of its first vote: errors that no vote can mend."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self._rng = judge, random.Random("shared")

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As `Judge.critique`."""
        critiques = await self._judge.critique(problem, responses, num_votes)
        return tuple(self._share(row, len(r.steps)) for row, r in zip(critiques, responses, strict=True))

    def _share(self, critiques: Sequence[Critique], num_steps: int) -> tuple[Critique, ...]:
        shared = {step for step in range(num_steps) if self._rng.random() < 0.5}
        first = critiques[0].flagged or frozenset()
        return tuple(replace(c, flagged=(first & shared) | ((c.flagged or frozenset()) - shared)) for c in critiques)
