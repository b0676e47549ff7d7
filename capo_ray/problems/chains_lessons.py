r"""Supervised lessons of the laptop world: what its policy and its critic are taught, as prompt and completion.

The policy is shown noisy demonstrations, so that it knows the facts but samples badly and reinforcement has something
to find. The critic first writes for each step the operation that the question asks for there, the right result of what
the step shows, and whether the step is right; then its judgement, then the wrong steps:

    7*8+5-3
    <step_0>7*8=6</step_0><step_1>6+5=2</step_1><step_2>2-3=9</step_2><step_3>\boxed{9}</step_3>
    <step_0>*86 Yes<step_1>+51 No<step_2>-39 Yes<step_3>9 Yes
    Judgement: No
    <incorrect_steps>1</incorrect_steps>

Its last Yes means that no step is wrong. Each piece makes the next learnable in minutes: the tag points to the step,
what to compare stands beside the mark, and the list only collects marks.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from capo_ray.problems.chains import (
    Chain,
    apply,
    demonstrate,
    draw_chain,
    response_text,
    right_results,
    true_wrong_steps,
)

Lesson = tuple[str, str]

CRITIC_ERROR_PROBS = (0.0, 0.05, 0.15, 0.3, 0.45)
CRITIC_MISREAD_PROBS = (0.0, 0.2, 0.4, 0.6)
CRITIC_FAULT_PROB = 0.15
_NOISE = "0123456789+-*=,"


def policy_lessons(
    seed: int, lengths: tuple[int, int], error_prob: float, unlearnt_frac: float = 0.0
) -> Iterator[Lesson]:
    """Endless (prompt, completion) pairs: noisy demonstrations of training chains.

    `lengths`: fewest and most operations, both included.
    """
    rng = random.Random(f"policy-lessons/{seed}")
    while True:
        chain = draw_chain(rng, rng.randint(*lengths), "train")
        yield f"{chain.prompt}\n", response_text(demonstrate(chain, rng, error_prob, unlearnt_frac=unlearnt_frac))


def fact_lessons(seed: int, lengths: tuple[int, int], label_error_prob: float = 0.0) -> Iterator[Lesson]:
    """Endless (prompt, completion) pairs that teach a critic bare facts, and nothing of chains.

    Every step answers its operation from an operand of its own, and is wrong when its result is: no step goes on from
    the one before, and none is misread. `label_error_prob` as in `critic_lessons`.
    """
    rng, slips = random.Random(f"fact-lessons/{seed}"), random.Random(f"label-errors/{seed}")
    while True:
        chain = draw_chain(rng, rng.randint(*lengths), "train")
        error_prob = rng.choice(CRITIC_ERROR_PROBS)
        steps = []
        for operator, digit in chain.operations:
            left = rng.randrange(10)
            result = rng.randrange(10) if rng.random() < error_prob else apply(left, operator, digit)
            steps.append(f"{left}{operator}{digit}={result}")
        steps.append(f"\\boxed{{{steps[-1][-1]}}}")
        wrong = frozenset(k for k, right in enumerate(right_results(steps)[:-1]) if steps[k][-1] != right)
        yield critic_prompt(chain.prompt, steps), _critique(chain, steps, wrong, label_error_prob, slips)


def critic_lessons(seed: int, lengths: tuple[int, int], label_error_prob: float = 0.0) -> Iterator[Lesson]:
    """Endless (prompt, completion) pairs of responses of mixed quality and their critiques.

    With probability `label_error_prob` a critique takes a random digit for the right result of a step, as people who
    label do; what is right but differs from it is flagged. Votes drawn at temperature 1 then err, and not all at once.
    """
    rng, slips = random.Random(f"critic-lessons/{seed}"), random.Random(f"label-errors/{seed}")
    while True:
        chain = draw_chain(rng, rng.randint(*lengths), "train")
        steps = demonstrate(chain, rng, rng.choice(CRITIC_ERROR_PROBS), rng.choice(CRITIC_MISREAD_PROBS))
        if rng.random() < CRITIC_FAULT_PROB:
            steps = with_fault(steps, rng)
        wrong = true_wrong_steps(chain, steps)
        yield critic_prompt(chain.prompt, steps), _critique(chain, steps, wrong, label_error_prob, slips)


def critic_prompt(question: str, steps: Sequence[str]) -> str:
    """What the critic reads: the question, then the tagged steps without their delimiters."""
    tagged = "".join(f"<step_{k}>{text.strip()}</step_{k}>" for k, text in enumerate(steps))
    return f"{question}\n{tagged}\n"


def critic_completion(chain: Chain, steps: Sequence[str]) -> str:
    """The true critique of a response."""
    return _critique(chain, steps, true_wrong_steps(chain, steps), 0.0, random.Random())


def _critique(
    chain: Chain, steps: Sequence[str], wrong: frozenset[int], label_error_prob: float, rng: random.Random
) -> str:
    """The critique that finds these steps `wrong`, and the steps whose right result it takes for another digit."""
    results = list(right_results(steps))
    for k, result in enumerate(results):
        if result != "-" and rng.random() < label_error_prob:
            results[k] = str(rng.randrange(10))
            if results[k] != result:
                wrong = wrong | {k} if steps[k].strip("}")[-1] != results[k] else wrong - {k}
    listed = ",".join(str(index) for index in sorted(wrong))
    asked = [f"{operator}{digit}" for operator, digit in chain.operations]
    pairs = enumerate(zip_longest(asked[: len(steps)], results, fillvalue=""))
    checked = "".join(f"<step_{k}>{a}{result}{' No' if k in wrong else ' Yes'}" for k, (a, result) in pairs)
    return f"{checked}\nJudgement:{' No' if wrong else ' Yes'}\n<incorrect_steps>{listed}</incorrect_steps>"


def with_fault(steps: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """The response with one fault of form: a wrong operand, operator, digit or box, a lost, extra or garbled step."""
    at = rng.randrange(len(steps) - 1)
    text = list(steps[at])
    kind = rng.choice(("operand", "operator", "digit", "box", "lost", "extra", "garbled"))
    if kind == "operand":
        text[0] = str(rng.randrange(10))
    elif kind == "operator":
        text[1] = rng.choice("+-*")
    elif kind == "digit":
        text[2] = str(rng.randrange(10))
    elif kind == "box":
        return (*steps[:-1], f"\\boxed{{{rng.randrange(10)}}}")
    elif kind == "lost":
        return steps[:at] + steps[at + 1 :]
    elif kind == "extra":
        return (*steps[: at + 1], *steps[at:])
    else:
        text = [rng.choice(_NOISE) for _ in range(rng.randrange(1, 8))]
    return (*steps[:at], "".join(text), *steps[at + 1 :])


def read_incorrect_steps(reply: str, num_steps: int) -> frozenset[int] | None:
    """The steps that a reply in the lessons' own form lists, or None where it is not in that form."""
    found = re.search(r"<incorrect_steps>((?:\d+(?:,\d+)*)?)</incorrect_steps>", reply)
    if not found:
        return None
    listed = frozenset(int(index) for index in found[1].split(",") if index)
    return listed if all(index < num_steps for index in listed) else None
