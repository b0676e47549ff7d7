"""The policy's prompt: a system text and a template we trust, a question that is data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from capo_ray.config.job import FrameConfig

_SLOT = "{question}"


def frame_question(tokenizer: Any, question: str, frame: FrameConfig) -> tuple[int, ...]:
    """As `build_policy_prompt`, in the frame that a run's `model` section says."""
    return build_policy_prompt(
        tokenizer,
        question,
        system_prompt=frame.system_prompt,
        template=frame.prompt_template,
        chat_template=frame.chat_template,
        chat_args=frame.chat_template_args,
    )


def build_policy_prompt(
    tokenizer: Any,
    question: str,
    *,
    system_prompt: str,
    template: str,
    chat_template: bool,
    chat_args: Mapping[str, object] = MappingProxyType({}),
) -> tuple[int, ...]:
    """The token ids [P] that ask the policy one question, generation prompt included.

    `tokenizer` is a `protocols.Tokenizer`. `template` is used where there is no chat template to use; a chat template,
    which reads `chat_args`, itself says what begins a prompt, before `template` stands what the tokenizer puts before
    any text.
    """
    if chat_template and (frame := tokenizer.chat_frame(system_prompt, **chat_args)) is not None:
        before, after = frame
        return tuple(tokenizer.encode_pieces([(before, True), (question, False), (after, True)], begins=False))
    if template.count(_SLOT) != 1:
        raise ValueError(f"model.prompt_template must hold {_SLOT} exactly once (got {template!r})")
    head, tail = template.split(_SLOT)
    if system_prompt:
        head = f"{system_prompt}\n{head}"
    return tuple(tokenizer.encode_pieces([(head, True), (question, False), (tail, True)], begins=True))
