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
from collections.abc import Sequence
from dataclasses import replace

import torch

from capo_ray.critics.panel import Asking
from capo_ray.critics.parse import parse_critique
from capo_ray.critics.scripted import ScriptedSource
from capo_ray.problems.chains import (
    Chain,
    ChainProblem,
    apply,
    make_problem,
    response_text,
    shown_answer,
    true_wrong_steps,
)
from capo_ray.types import Critique, Group, Provenance
from plain_torch.learner import Row, response_logprobs
from plain_torch.sampling import Sampled
from plain_torch.world import Actor, texts_of, truth_of, with_critiques

GROUP = ("clean", "clean", "slip", "carried", "operation", "lucky", "lucky", "slip")
"""The kinds of the siblings of every group: half of the answers are right, half of those by luck."""


def planted_groups(actor: Actor, lengths: Sequence[int], per_length: int) -> list[Group]:
    """Groups of planted responses, tokens and logprobs those of the policy."""
    groups: list[Group] = []
    for length in lengths:
        for index in range(per_length):
            rng = random.Random(f"planted/{length}/{index}")
            problem = make_problem(1, index, length, "held_out")
            while (texts := plant_all(problem, rng)) is None:
                problem = make_problem(1, rng.randrange(10**9), length, "held_out")
            groups.append(to_group(actor, len(groups), problem, texts))
    return groups


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


@torch.no_grad()
def to_group(actor: Actor, index: int, problem: ChainProblem, texts: Sequence[str]) -> Group:
    """The texts as responses of the policy to a problem."""
    prompt = actor.encode(problem)
    ids = [(*actor.tokenizer.encode(text), actor.model.eos) for text in texts]
    rows = [Row(prompt + row, len(prompt), (), (), 1.0) for row in ids]
    logprobs = response_logprobs(actor.model, rows).split([len(row) for row in ids])
    streams = [Sampled(row, tuple(scores.tolist()), True) for row, scores in zip(ids, logprobs, strict=True)]
    return Group(index, problem, tuple(actor.judged(problem, prompt, i, s) for i, s in enumerate(streams)))


def scripted(groups: Sequence[Group], num_votes: int, precision: float, recall: float) -> list[Group]:
    """The groups with votes of a critic of this precision and recall, each vote's errors its own."""
    wrong_frac = share_wrong(groups)
    source = ScriptedSource(
        lambda problem, steps: true_wrong_steps(problem, steps),
        precision=precision,
        recall=recall,
        wrong_frac=wrong_frac,
    )
    return [
        with_critiques(group, [asyncio.run(_ask(source, group, i, num_votes)) for i in range(len(group.members))])
        for group in groups
    ]


async def _ask(source: ScriptedSource, group: Group, index: int, num_votes: int) -> tuple[Critique, ...]:
    steps = texts_of(group.members[index])
    asking = Asking(group.problem, steps, f"{group.id}/{index}")
    texts = [reply.text async for reply in source.votes(asking, num_votes, 0, 0)]
    parsed = [parse_critique(text, len(steps), "every_step") for text in texts]
    return tuple(
        Critique(flagged, overall, text, reason, Provenance("scripted", "", vote))
        for vote, (text, (flagged, overall, reason)) in enumerate(zip(texts, parsed, strict=True))
    )


def accurate(groups: Sequence[Group], num_votes: int, accuracy: float) -> list[Group]:
    """The groups with votes that judge each step rightly with probability `accuracy`, wrong steps and right ones."""
    w = share_wrong(groups)
    return scripted(groups, num_votes, w * accuracy / (w * accuracy + (1 - w) * (1 - accuracy)), accuracy)


def half_shared(groups: Sequence[Group], num_votes: int, accuracy: float) -> list[Group]:
    """As `accurate`, but on half of the steps all votes of a response say the same: errors that a vote cannot mend."""
    rng = random.Random("shared")
    rows = []
    for group in accurate(groups, num_votes, accuracy):
        members = []
        for member in group.members:
            shared = {s for s in range(len(member.steps)) if rng.random() < 0.5}
            first = member.evidence.critiques[0].flagged or frozenset()
            members.append(
                tuple(
                    replace(c, flagged=(first & shared) | ((c.flagged or frozenset()) - shared))
                    for c in member.evidence.critiques
                )
            )
        rows.append(with_critiques(group, members))
    return rows


def share_wrong(groups: Sequence[Group]) -> float:
    """The share of steps that are wrong."""
    return sum(len(t) for g in groups for t in truth_of(g)) / sum(len(m.steps) for g in groups for m in g.members)
