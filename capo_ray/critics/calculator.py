"""A critic without a model: it checks the arithmetic that it can find, and says nothing of the rest.

A step is flagged when one of its claims is false. A response with nothing to check is not judged: the critique is
invalid and abstains. Always the same answer, so one vote stands for all (as many as the quorum asks for are given).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from capo_ray.config.sections import CriticConfig
from capo_ray.critics.equations import Claim, check_claims
from capo_ray.critics.panel import Asking, Panel, Reply
from capo_ray.protocols import JudgeRequest
from capo_ray.types import Critique, Problem

MAX_CLAIMS = 400
"""Claims checked in one response."""


class CalculatorSource:
    """The calculator's word as a reply in the critics' common form."""

    model = "calculator"

    def __init__(self, modulus: int) -> None:
        self._modulus = modulus
        self.sampling: dict[str, object] = {"modulus": modulus}

    async def votes(self, asking: Asking, num_votes: int, num_held: int, num_fresh: int) -> AsyncGenerator[Reply, None]:
        """The same reply each time."""
        text = calculate(asking.steps, self._modulus)
        for _ in range(num_votes):
            yield Reply(text)


class CalculatorJudge(Panel):
    """`protocols.Judge`: arithmetic as the critic."""

    def __init__(self, config: CriticConfig, *, vote: str = "greedy", quorum: int = 1) -> None:
        super().__init__(CalculatorSource(config.calculator_modulus), config, vote=vote, quorum=quorum)

    async def critique(
        self, problem: Problem, responses: Sequence[JudgeRequest], num_votes: int
    ) -> tuple[tuple[Critique, ...], ...]:
        """As many critiques as the quorum asks for."""
        return await super().critique(problem, responses, min(num_votes, self._quorum))


def calculate(steps: Sequence[str], modulus: int = 0) -> str:
    """A critique in the common form: the false claims, then the list; no list where nothing could be checked."""
    lines: list[str] = []
    flagged: list[int] = []
    num_checked = 0
    for index, step in enumerate(steps):
        checked = [claim for claim in check_claims(step, modulus) if claim.holds is not None]
        num_checked += len(checked)
        false = [claim for claim in checked if not claim.holds]
        lines += [f"step {index}: {_shown(claim)}" for claim in false]
        if false:
            flagged.append(index)
        if num_checked >= MAX_CLAIMS:
            break
    if not num_checked:
        return "nothing to check"
    return "\n".join([*lines, f"<incorrect_steps>{','.join(map(str, flagged))}</incorrect_steps>"])


def _shown(claim: Claim) -> str:
    """A claim cut to a line; its words cannot be taken for a verdict (numbers and operators only)."""
    return f"{claim.text[:200]} does not hold"
