"""The environment of one turn: what the engine says is the response, and nobody replies."""

from __future__ import annotations

from collections.abc import Sequence

from capo_ray.protocols import Played, Sampling, TextEngine
from capo_ray.types import Problem


class SingleTurn:
    """`protocols.Environment` for responses of one turn."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine

    async def play(self, problem: Problem, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Played, ...]:
        """The engine's own `sampling.n` completions."""
        completions = await self._engine.generate(prompt_ids, sampling)
        return tuple(Played(tuple(prompt_ids), completion) for completion in completions)

    def figures(self) -> dict[str, float]:
        """None."""
        return {}
