"""The environment of a run, from its section."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from capo_ray.config import TrainConfig
from capo_ray.config.environment import PlayedBase
from capo_ray.environments.children import Children
from capo_ray.environments.playing import Playing, Source
from capo_ray.environments.single import SingleTurn
from capo_ray.prompts import frame_question
from capo_ray.protocols import Environment, TextEngine, Tokenizer


@contextlib.contextmanager
def open_environment(config: TrainConfig, engine: TextEngine, tokenizer: Tokenizer) -> Iterator[Environment]:
    """The environment, with its processes while it is open."""
    if not isinstance(config.environment, PlayedBase):
        yield SingleTurn(engine)
        return
    with Children(config.environment) as children:
        yield build_environment(config, engine, tokenizer, children)


def build_environment(config: TrainConfig, engine: TextEngine, tokenizer: Any, source: Source) -> Playing:
    """The loop of turns over who replies."""
    model, section = config.model, config.environment
    assert isinstance(section, PlayedBase)
    frame = tokenizer.reply_frame(**model.chat_template_args) if model.chat_template else None
    return Playing(
        section,
        source,
        engine,
        tokenizer,
        lambda problem: frame_question(tokenizer, problem.prompt, model),
        frame,
        model.max_model_len,
    )
