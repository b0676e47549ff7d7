"""Fakes for the critic tests: a tokenizer that knows control tokens, and an engine that answers from a script."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence

from capo_ray.protocols import Sampling
from capo_ray.types import Completion, VersionRun

CONTROL = ("<|im_start|>", "<|im_end|>", "<eos>", "<think>", "</think>", "§odd§")
_SPLIT = re.compile("(" + "|".join(map(re.escape, CONTROL)) + ")")


class LetterTokenizer:
    """One id per letter (its code point); control tokens have negative ids."""

    eos_id = -3

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in _SPLIT.split(text):
            ids += [-1 - CONTROL.index(part)] if part in CONTROL else map(ord, part)
        return ids

    def encode_data(self, text: str) -> list[int]:
        return list(map(ord, text))

    def chat_frame(self, system: str) -> tuple[str, str]:
        head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        return f"{head}<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]], *, begins: bool) -> list[int]:
        return [i for text, trusted in pieces for i in (self.encode(text) if trusted else self.encode_data(text))]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in token_ids if i >= 0)

    def spell(self, token_ids: Sequence[int]) -> str:
        """The text with control tokens spelled out."""
        return "".join(chr(i) if i >= 0 else CONTROL[-1 - i] for i in token_ids)


class ScriptedEngine:
    """A `TextEngine` whose n completions are `answers(prompt text, sampling)`; each is (delay in s, text)."""

    def __init__(self, answers: Callable[[str, Sampling], Sequence[tuple[float, str]]], finish: str = "stop") -> None:
        self.answers, self.finish = answers, finish
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []
        self.yielded = 0
        self.closed = 0

    async def stream(self, prompt_ids: Sequence[int], sampling: Sampling) -> AsyncGenerator[Completion, None]:
        prompt = LetterTokenizer().spell(prompt_ids)
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        try:
            waited = 0.0
            for delay, text in sorted(self.answers(prompt, sampling))[: sampling.n]:
                await asyncio.sleep(delay - waited)
                waited = delay
                self.yielded += 1
                ids = tuple(map(ord, text))
                ends = tuple(range(1, len(ids) + 1))
                yield Completion(ids, (0.0,) * len(ids), ends, text, (VersionRun(0, len(ids)),), self.finish)  # type: ignore[arg-type]
        finally:
            self.closed += 1

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> tuple[Completion, ...]:
        return tuple([c async for c in self.stream(prompt_ids, sampling)])

    async def score(self, token_ids, starts):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    async def load_weights(self, handle):  # type: ignore[no-untyped-def]
        raise NotImplementedError
