"""Rollouts and critiques of the laptop world as the project's own nouns: `Trajectory`, `Judged`, `Group`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from capo_ray.config.sections import CriticConfig
from capo_ray.critics.parse import parse_critique
from capo_ray.engines import HfTokenizer
from capo_ray.problems.chains import ChainProblem, make_problem, shown_answer, true_wrong_steps
from capo_ray.prompts import build_critic_prompt, build_policy_prompt
from capo_ray.protocols import step_texts
from capo_ray.steps import split_steps
from capo_ray.types import (
    Completion,
    Critique,
    Evidence,
    Group,
    Judged,
    Provenance,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
)
from plain_torch.model import Model
from plain_torch.sampling import Sampled, sample

CUE = "\\boxed{"


class Actor:
    """The policy's model and tokenizer, and what they have computed so far in tokens."""

    def __init__(self, model: Model) -> None:
        self.model, self.tokenizer = model, HfTokenizer(model.path)
        self.tokens = 0

    def encode(self, problem: ChainProblem) -> tuple[int, ...]:
        return build_policy_prompt(
            self.tokenizer, problem.prompt, system_prompt="", template="{question}\n", chat_template=False
        )

    def roll_out(
        self, problems: Sequence[ChainProblem], count: int, generator: torch.Generator, temperature: float = 1.0
    ) -> list[Group]:
        """A group of `count` verified responses to each problem, sampled at `temperature`."""
        prompts = [self.encode(problem) for problem in problems]
        longest = max(len(p.chain.operations) for p in problems)
        streams = sample(
            self.model, prompts, count, max_tokens=6 * longest + 16, generator=generator, temperature=temperature
        )
        self.tokens += sum(map(len, prompts)) + sum(len(s.ids) for row in streams for s in row)
        return [
            Group(i, problem, tuple(self.judged(problem, prompt, j, s) for j, s in enumerate(row)))
            for i, (problem, prompt, row) in enumerate(zip(problems, prompts, streams, strict=True))
        ]

    def judged(self, problem: ChainProblem, prompt: tuple[int, ...], index: int, stream: Sampled) -> Judged:
        text, char_ends = self.tokenizer.decode_pieces(stream.ids)
        response = Completion(
            token_ids=np.array(stream.ids),
            logprobs=np.array(stream.logprobs),
            char_ends=np.array(char_ends),
            text=text,
            versions=(VersionRun(0, len(stream.ids)),),
            finish="stop" if stream.finished else "length",
        )
        shown = shown_answer(text)
        verdict = Verdict(int(shown == problem.answer), "", shown)
        return Judged(
            Trajectory(TrajectoryKey(problem.id, 0, index), np.array(prompt), response), verdict, split_steps(response)
        )

    @torch.no_grad()
    def score_answers(self, group: Group) -> list[tuple[float, ...]]:
        """[G][K+1]: logprob of the reference answer (one token) after 0..K steps and the cue, all in one packed pass.

        Behind each response stand the K+1 cues; each sees the prompt, its prefix and itself alone.
        """
        (cue,), (answer,) = self.tokenizer.encode(CUE), self.tokenizer.encode_data(group.problem.answer)
        rows, ends_of = [], []
        for member in group.members:
            prompt, response = member.trajectory.prompt_ids, member.trajectory.response.token_ids
            body = [t for t in response if t != self.model.eos]
            ends_of.append([len(prompt) + min(end, len(body)) for end in (0, *(end for _, end in member.steps))])
            rows.append([*prompt, *body])
        width = max(len(row) + len(ends) for row, ends in zip(rows, ends_of, strict=True))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        positions = torch.arange(width).expand_as(ids).clone()
        mask = torch.tril(torch.ones(width, width, dtype=torch.bool)).expand(len(rows), 1, -1, -1).clone()
        for r, (row, ends) in enumerate(zip(rows, ends_of, strict=True)):
            ids[r, : len(row)] = torch.tensor(row)
            for k, end in enumerate(ends):
                at = len(row) + k
                ids[r, at], positions[r, at] = cue, end
                mask[r, 0, at, end:at] = False
        logps = torch.log_softmax(self.model.logits(self.model.forward(ids, positions, mask)), -1)[..., answer]
        self.tokens += int(ids.numel())
        return [
            tuple(logps[r, len(row) : len(row) + len(ends)].tolist())
            for r, (row, ends) in enumerate(zip(rows, ends_of, strict=True))
        ]


class Critic:
    """A critic's model and tokenizer, and what they have computed so far in tokens."""

    def __init__(self, model: Model) -> None:
        self.model, self.tokenizer = model, HfTokenizer(model.path)
        self.tokens = 0

    def critique(
        self, groups: Sequence[Group], num_votes: int, generator: torch.Generator, *, greedy: bool = False
    ) -> list[Group]:
        """The groups with `num_votes` critiques of each response; equal responses to a problem share theirs."""
        asked: dict[tuple[str, tuple[str, ...]], int] = {}
        steps = [[texts_of(member) for member in group.members] for group in groups]
        for group, rows in zip(groups, steps, strict=True):
            for row in rows:
                asked.setdefault((group.problem.prompt, row), len(asked))
        prompts = [
            build_critic_prompt(self.tokenizer, rubric="compact", question=question, solution=None, steps=row)
            for question, row in asked
        ]
        defaults = CriticConfig()
        streams = sample(
            self.model,
            prompts,
            num_votes,
            # Three tokens a step, a dozen around the verdict, and the list with every step in it.
            max_tokens=max(7 * len(row) + 16 for _, row in asked),
            generator=generator,
            temperature=0.0 if greedy else defaults.temperature,
            top_p=1.0 if greedy else defaults.top_p,
        )
        self.tokens += sum(map(len, prompts)) + sum(len(s.ids) for votes in streams for s in votes)
        read = [self._read(votes, len(row)) for votes, (_, row) in zip(streams, asked, strict=True)]
        return [
            with_critiques(group, [read[asked[group.problem.prompt, row]] for row in rows])
            for group, rows in zip(groups, steps, strict=True)
        ]

    def _read(self, votes: Sequence[Sampled], num_steps: int) -> tuple[Critique, ...]:
        critiques = []
        for index, vote in enumerate(votes):
            text = self.tokenizer.decode(vote.ids)
            flagged, overall, reason = parse_critique(text, num_steps, "compact", truncated=not vote.finished)
            critiques.append(Critique(flagged, overall, text, reason, Provenance(self.model.path, "", index)))
        return tuple(critiques)


def texts_of(member: Judged) -> tuple[str, ...]:
    """The step texts of a response."""
    response = member.trajectory.response
    return step_texts(response.text, response.char_ends, member.steps)


def truth_of(group: Group) -> list[frozenset[int]]:
    """For each response the steps that are really wrong."""
    return [true_wrong_steps(group.problem, texts_of(member)) for member in group.members]


def with_critiques(group: Group, critiques: Sequence[tuple[Critique, ...]]) -> Group:
    """The group with these critiques as its only evidence."""
    return with_evidence(group, [Evidence(critiques=row) for row in critiques])


def with_flags(group: Group, flags: Sequence[Sequence[frozenset[int]]]) -> Group:
    """The group with critiques that flag these steps, one set per vote."""
    return with_critiques(
        group,
        [tuple(Critique(f, not f, "", "", Provenance("flags", "", v)) for v, f in enumerate(votes)) for votes in flags],
    )


def with_evidence(group: Group, evidence: Sequence[Evidence]) -> Group:
    """The group with this evidence, one per response."""
    members = tuple(replace(m, evidence=e) for m, e in zip(group.members, evidence, strict=True))
    return replace(group, members=members)


def with_answer_logprobs(actor: Actor, group: Group, segmenter: str = "blank_line") -> Group:
    """The group cut by `segmenter`, with the policy's likelihoods of the answer after each step."""
    members = tuple(replace(m, steps=split_steps(m.trajectory.response, segmenter)) for m in group.members)
    cut = replace(group, members=members)
    return with_evidence(cut, [Evidence(answer_logprobs=row) for row in actor.score_answers(cut)])


def first_votes(groups: Sequence[Group], count: int) -> list[Group]:
    """The groups with the first `count` critiques of each response."""
    return [with_critiques(g, [m.evidence.critiques[:count] for m in g.members]) for g in groups]


def draw_problems(seed: int, first: int, count: int, operations: int) -> list[ChainProblem]:
    """Training problems first..first+count of a seed."""
    return [make_problem(seed, first + i, operations) for i in range(count)]


def shuffle_flags(group: Group, rng: random.Random) -> Group:
    """The group with the step numbers of each response permuted in all its critiques: as many flags, elsewhere."""
    rows = []
    for member in group.members:
        order = list(range(len(member.steps)))
        rng.shuffle(order)
        rows.append(
            tuple(
                c if c.flagged is None else replace(c, flagged=frozenset(order[s] for s in c.flagged))
                for c in member.evidence.critiques
            )
        )
    return with_critiques(group, rows)
