"""Searches over whole responses: one as it comes, the commonest answer of several, the one with the fewest flags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from capo_ray.config.search import BestOfNSearch, MajoritySearch, SampleSearch
from capo_ray.search.asking import Asking, Found


async def sample(asking: Asking, search: SampleSearch) -> Found:
    """One response."""
    return Found(await asking.writer.whole(1))


async def majority(asking: Asking, search: MajoritySearch) -> Found:
    """The first response with the commonest answer of n; the first of all where none has an answer."""
    drawn = await asking.writer.whole(search.num_samples)
    answers = [asking.answer_of(one.text) for one in drawn]
    place = commonest(answers)
    agreed = answers.count(answers[place]) / len(answers) if answers[place] is not None else 0.0
    return Found((drawn[place],), {"agreement_frac": agreed})


async def best_of_n(asking: Asking, search: BestOfNSearch) -> Found:
    """The response of n in which the critic flags least."""
    assert asking.critic is not None, "the section says that it asks the critic"
    drawn = await asking.writer.whole(search.num_samples)
    steps = [asking.cut_steps(one.text) or ("",) for one in drawn]
    asking.spent.judged_steps += sum(map(len, set(steps)))
    flags = [None if weights is None else sum(weights) for weights in await asking.critic.weights(steps)]
    place = fewest(flags, [one.logprob for one in drawn])
    told = {} if flags[place] is None else {"flags": flags[place] or 0.0}
    return Found((drawn[place],), told)


def commonest(answers: Sequence[str | None]) -> int:
    """The place of the first answer that occurs most often; those that are None do not count."""
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return 0
    most = max(counts.values())
    return next(i for i, answer in enumerate(answers) if answer is not None and counts[answer] == most)


def fewest(flags: Sequence[float | None], logprobs: Sequence[float]) -> int:
    """The place of the fewest flags, of equal ones the likeliest; one that was not judged comes after all that were."""
    return min(range(len(flags)), key=lambda i: (flags[i] is None, flags[i] or 0.0, -logprobs[i], i))
