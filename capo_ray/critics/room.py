"""How much room a critic needs for its answer, and how much a server's refusal says that there is."""

from __future__ import annotations

import re

CHARS_PER_TOKEN = 3
"""Of a prompt whose tokens nobody counted: few, so that it is rather taken for too long."""
_CONTEXT = re.compile(
    r"(?:maximum context length|context (?:length|size|window)|max_model_len)[^0-9.]{0,24}([0-9]{2,9})", re.IGNORECASE
)
_PROMPT = re.compile(
    r"([0-9]{1,9})\s*(?:input tokens|tokens from the input|(?:tokens )?in (?:the|your) (?:messages|prompt|input))",
    re.IGNORECASE,
)


def least_answer_tokens(rubric: str, num_steps: int) -> int:
    """Tokens below which an answer under this rubric would be cut off before its verdict's end.

    One short sentence on each step and the verdict; the bare layout writes the verdict alone.
    """
    if rubric == "compact":
        return 16
    return 48 + 16 * num_steps


def has_context_words(message: str) -> bool:
    """Whether a refusal is about the length of prompt and answer."""
    text = message.lower()
    return any(words in text for words in ("context length", "context size", "context window", "max_model_len"))


def room_from(message: str, prompt_chars: int, context: int | None = None) -> int | None:
    """Tokens that a server has for the answer, by its own words (vLLM, OpenAI, SGLang and llama.cpp); None: no word.

    The prompt's tokens are guessed from its letters where they are not said. `context`: the server's, if known.
    """
    said = _CONTEXT.search(message)
    if said is not None:
        context = int(said.group(1))
    if context is None:
        return None
    prompt = _PROMPT.search(message)
    num_prompt = int(prompt.group(1)) if prompt is not None else -(-prompt_chars // CHARS_PER_TOKEN)
    return max(0, context - num_prompt)
