"""A critic that knows the truth of made problems, and errs as often as it is told to: a control.

    wrong step   flagged with probability recall
    right step   flagged with probability recall w/(1 - w) (1 - precision)/precision       w: share of wrong steps

Each vote errs on its own. What it says of a response depends on the response, these settings and the number of the vote
alone: it is the same in every run, whatever the seed, as the errors of a model at temperature 0 are.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Collection, Sequence

from capo_ray.config.sections import CriticConfig
from capo_ray.critics.panel import Asking, Panel, Reply
from capo_ray.types import Problem

Truth = Callable[[Problem, Sequence[str]], frozenset[int]]
"""The 0-based wrong steps of a response; raises `ValueError` where they are not known."""


def noisy_vote(rng: random.Random, num_steps: int, wrong: Collection[int], recall: float, false_alarm: float) -> str:
    """A critique in the common form that flags wrong steps with probability `recall`, right ones with `false_alarm`."""
    flagged = [i for i in range(num_steps) if rng.random() < (recall if i in wrong else false_alarm)]
    word = "No" if flagged else "Yes"
    return f"Judgement: {word}\n<incorrect_steps>{','.join(map(str, flagged))}</incorrect_steps>"


class OracleSource:
    """The truth as replies in the critics' common form, each with errors of its own."""

    model = "oracle"

    def __init__(self, truth: Truth, config: CriticConfig) -> None:
        precision, recall, wrong = config.oracle_precision, config.oracle_recall, config.oracle_wrong_frac
        self._truth, self._recall, self._false_alarm = truth, recall, config.oracle_false_alarm
        self.sampling: dict[str, object] = {"precision": precision, "recall": recall, "wrong_frac": wrong}

    async def votes(self, asking: Asking, num_votes: int, num_held: int, num_fresh: int) -> AsyncGenerator[Reply, None]:
        """One reply after the other."""
        wrong = self._truth(asking.problem, asking.steps)
        for index in range(num_held + num_fresh, num_held + num_fresh + num_votes):
            rng = random.Random(f"{asking.key}/{index}")
            yield Reply(noisy_vote(rng, len(asking.steps), wrong, self._recall, self._false_alarm))


class OracleJudge(Panel):
    """`protocols.Judge`: the truth as the critic."""

    def __init__(self, truth: Truth, config: CriticConfig, *, vote: str, quorum: int) -> None:
        super().__init__(OracleSource(truth, config), config, vote=vote, quorum=quorum)
