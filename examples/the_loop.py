"""The loop, told once: roll out, verify, critique, vote, credit, loss. No Ray, no vLLM, no DeepSpeed; for readers.

    problem -> Trajectory x G -> Verdict x G -> steps -> Critique x k -> Judged x G -> GroupCredit -> Sample x G -> loss

A run of `capo-ray train` goes the same way with the same rooms (`credit`, `votes`, `steps`, `packing`, `loss`); what it
adds is that all of this happens at once, on many machines, with deadlines. Here one thing follows the other, with the
small policy that the package ships and a critic that does arithmetic:

    .venv/bin/python examples/the_loop.py --updates 4
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from capo_ray.config.credit import CapoConfig
from capo_ray.credit import assign_credit
from capo_ray.critics.calculator import calculate
from capo_ray.critics.parse import parse_critique
from capo_ray.engines.tokenizer import HfTokenizer
from capo_ray.learners.microbatch import to_microbatch
from capo_ray.learners.policy import Policy, load_policy
from capo_ray.loss import policy_loss
from capo_ray.packing import build_batch
from capo_ray.problems.assets import asset_path
from capo_ray.problems.chains import make_problem, shown_answer
from capo_ray.protocols import step_texts
from capo_ray.steps import split_steps
from capo_ray.types import (
    Batch,
    Completion,
    Critique,
    Evidence,
    Group,
    Judged,
    Problem,
    Provenance,
    Sample,
    Trajectory,
    TrajectoryKey,
    Verdict,
    VersionRun,
)

SIBLINGS, PROBLEMS, OPERATIONS, MAX_TOKENS = 8, 4, 6, 64
CREDIT = CapoConfig(method="capo", vote="majority", w_whole=1.0, w_process=1.0)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The policy under training, its tokenizer, and the mover of its weights."""

    policy: Policy
    tokenizer: HfTokenizer
    optimizer: torch.optim.Optimizer


@torch.no_grad()
def roll_out(world: World, problem: Problem, group: int, version: int) -> list[Trajectory]:
    """G siblings sampled at temperature 1, each token with the log-probability it was drawn with."""
    prompt, eos = world.tokenizer.encode(problem.prompt + "\n"), world.tokenizer.eos_id
    rows = torch.tensor([prompt] * SIBLINGS)
    logprobs: list[torch.Tensor] = []
    done = torch.zeros(SIBLINGS, dtype=torch.bool)
    while not done.all() and len(logprobs) < MAX_TOKENS:
        choices = world.policy.model(input_ids=rows).logits[:, -1].float().log_softmax(-1)
        drawn = choices.exp().multinomial(1)
        logprobs.append(choices.gather(1, drawn)[:, 0])
        rows = torch.cat((rows, drawn), dim=1)
        done |= drawn[:, 0] == eos
    taken = torch.stack(logprobs, dim=1)
    paths = []
    for i, row in enumerate(rows[:, len(prompt) :].tolist()):
        ids = row[: row.index(eos) + 1] if eos in row else row
        text, ends = world.tokenizer.decode_pieces(ids)
        finish = "stop" if ids[-1] == eos else "length"
        runs = (VersionRun(version, len(ids)),)
        response = Completion(ids, taken[i, : len(ids)].numpy(), ends, text, runs, finish)
        paths.append(Trajectory(TrajectoryKey(problem.id, group, i), prompt, response))
    return paths


def verify(problem: Problem, path: Trajectory) -> Verdict:
    """1 where the boxed answer is the problem's. A run asks math-verify, in a process that may be killed."""
    shown = shown_answer(path.response.text)
    return Verdict(int(shown == problem.answer), "same text", shown)


def critique(path: Trajectory, steps: Sequence[tuple[int, int]]) -> Critique:
    """One vote: which steps are wrong. A run asks a language model k times; this critic only does arithmetic mod 10."""
    texts = step_texts(path.response.text, path.response.char_ends, steps)
    words = calculate(texts, modulus=10)
    flagged, overall, reason = parse_critique(words, len(steps), "every_step")
    return Critique(flagged, overall, words, reason, Provenance("calculator", "", vote_index=0))


def judge(problem: Problem, path: Trajectory) -> Judged:
    """A trajectory with its verdict, its steps and the critiques of them."""
    steps = split_steps(path.response)  # blank lines end steps; spans of tokens that tile the response
    return Judged(path, verify(problem, path), steps, Evidence(critiques=(critique(path, steps),)))


def to_samples(group: Group) -> list[Sample]:
    """All that the learner will ever know: tokens, the sampler's logprobs, one advantage a token."""
    credit = assign_credit(group, CREDIT)  # the vote weighs steps; A_t = (R_t - mean) / std, R_t = r - w(step of t)
    return [
        Sample(path.key, path.token_ids, path.response.logprobs, advantages, path.response.versions)
        for path, advantages in zip((member.trajectory for member in group.members), credit.advantages, strict=True)
    ]


def update(world: World, batch: Batch) -> float:
    """The loss of the batch, after one move against it. Weights of tokens are fixed before the batch is cut."""
    total = 0.0
    for row in batch.grid:  # one microbatch after the other; a cluster deals each row over its ranks
        cell = to_microbatch(row[0], CPU)
        logprobs, _ = world.policy(cell.inputs, 1.0)
        loss, _ = policy_loss(logprobs, cell.sampler_logprobs, cell.advantages, cell.weights, cell.sequences)
        loss.backward()
        total += float(loss.detach())
    world.optimizer.step()
    world.optimizer.zero_grad()
    return total


def main(updates: int, seed: int = 0) -> list[float]:
    """The share of right answers before each update; printed with the share of steps that were flagged."""
    torch.manual_seed(seed)
    home = str(asset_path("laptop", "policy"))
    policy = load_policy(home, "float32")
    world = World(policy, HfTokenizer(home), torch.optim.AdamW(policy.parameters(), lr=3e-4))
    rng, accuracy = random.Random(seed), []
    for version in range(updates):
        groups = []
        for number in range(PROBLEMS):
            problem = make_problem(seed, rng.randrange(10**6), OPERATIONS)
            paths = roll_out(world, problem, number, version)
            groups.append(Group(number, problem, tuple(judge(problem, path) for path in paths)))
        members = [member for group in groups for member in group.members]
        samples = [sample for group in groups for sample in to_samples(group)]
        batch = build_batch(samples, num_ranks=1, microbatch_tokens=2048, aggregation="sequence_mean")
        loss = update(world, batch)
        accuracy.append(sum(m.verdict.reward or 0 for m in members) / len(members))
        flags = sum(len(vote.flagged or ()) for m in members for vote in m.evidence.critiques)
        share = flags / sum(len(m.steps) for m in members)
        print(f"update {version + 1}  right {accuracy[-1]:.2f}  flagged {share:.2f}  loss {loss:+.4f}", flush=True)
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--updates", type=int, default=4)
    main(parser.parse_args().updates)
