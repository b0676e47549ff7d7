"""An LLM critic behind a text engine.

rubric, question, reference  |  tagged steps   ->  prompt ids  ->  engine.stream(n = missing votes)  ->  replies
shared by the siblings          one response        one prefill for all its votes
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

from capo_ray.config.credit import asks_once
from capo_ray.config.sections import CriticConfig
from capo_ray.critics.grammar import verdict_regex
from capo_ray.critics.guarded import StoreDoor
from capo_ray.critics.panel import Asking, Panel, Reply
from capo_ray.critics.room import least_answer_tokens
from capo_ray.critics.store import CritiqueStore
from capo_ray.prompts import build_critic_prompt, load_rubric
from capo_ray.protocols import Sampling, StreamingEngine, Tokenizer


class EngineSource:
    """Votes sampled by an engine that holds the critic."""

    def __init__(
        self, engine: StreamingEngine, tokenizer: Tokenizer, config: CriticConfig, *, greedy: bool, model: str
    ) -> None:
        self._engine, self._tokenizer, self._config = engine, tokenizer, config
        self._rubric = load_rubric(config.rubric)
        self._temperature = 0.0 if greedy else config.temperature
        self._top_p = 1.0 if self._temperature == 0 else config.top_p
        self.model = model
        self.sampling: dict[str, object] = {
            "temperature": self._temperature,
            "top_p": self._top_p,
            "max_tokens": config.max_tokens,
            "constrain": config.constrain,
            "chat": config.chat_template,
        }

    async def votes(self, asking: Asking, num_votes: int, num_held: int, num_fresh: int) -> AsyncGenerator[Reply, None]:
        """The replies as each ends; closing this aborts the others. Raises `ValueError` on a prompt too long."""
        prompt = build_critic_prompt(
            self._tokenizer,
            rubric=self._config.rubric,
            question=asking.problem.prompt,
            solution=asking.problem.solution,
            steps=asking.steps,
            chat=self._config.chat_template,
        )
        sampling = self._to_sampling(asking, len(prompt), num_votes, _seed(asking.key, num_held) + num_fresh)
        async with aclosing(self._engine.stream(prompt, sampling)) as completions:
            async for completion in completions:
                yield Reply(
                    text=completion.text,
                    truncated=completion.finish != "stop",
                    prompt_tokens=len(prompt),
                    output_tokens=len(completion.token_ids),
                    seed=sampling.seed,
                    failure="aborted" if completion.finish == "aborted" else "",
                )

    def _to_sampling(self, asking: Asking, prompt_tokens: int, num_votes: int, seed: int) -> Sampling:
        config = self._config
        room = config.max_model_len - prompt_tokens
        least = min(config.max_tokens, least_answer_tokens(self._rubric.name, len(asking.steps)))
        if room < least:
            raise ValueError(
                f"the critic's prompt must leave room for an answer of {least} tokens in critic.max_model_len="
                f"{config.max_model_len} tokens (prompt has {prompt_tokens})"
            )
        return Sampling(
            temperature=self._temperature,
            top_p=self._top_p,
            max_tokens=min(config.max_tokens, room),
            n=num_votes,
            seed=seed if self._temperature > 0 else None,
            regex=verdict_regex(len(asking.steps), self._rubric.name) if config.constrain else None,
        )


class Judge(Panel):
    """`protocols.Judge`: an LLM critic in this process's engine."""

    def __init__(
        self,
        engine: StreamingEngine,
        tokenizer: Tokenizer,
        config: CriticConfig,
        *,
        vote: str,
        quorum: int,
        model_revision: str,
        store: CritiqueStore | StoreDoor | None = None,
    ) -> None:
        source = EngineSource(engine, tokenizer, config, greedy=asks_once(vote), model=model_revision)
        super().__init__(source, config, vote=vote, quorum=quorum, store=store)


def _seed(key: str, num_held: int) -> int:
    """The seed (30 bits) of a request's first vote; those after it count up, whichever call asks for them.

    Votes already held were drawn under another seed, so that none is drawn twice.
    """
    return int.from_bytes(hashlib.sha256(f"{key}/{num_held}".encode()).digest()[:4], "big") >> 2
