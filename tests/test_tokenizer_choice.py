"""Tokenizers whose class is certain are loaded without asking transformers' registry, and are what it would give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tiny import write_tokenizer
from capo_ray.engines import HfTokenizer
from capo_ray.engines.tokenizer import _is_plain
from capo_ray.problems import asset_path


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_a_plain_tokenizer_is_the_one_that_transformers_would_choose(role: str) -> None:
    from transformers import AutoTokenizer

    path = asset_path("novice", role)
    assert _is_plain(path)
    ours, theirs = HfTokenizer(path).hf, AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert type(ours) is type(theirs) and str(ours.init_kwargs) == str(theirs.init_kwargs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [
        ({"model_type": "qwen2"}, {}),  # one of those whose files transformers does not believe
        ({}, {"tokenizer_class": "Qwen2Tokenizer"}),
        ({}, {"tokenizer_class": None}),
        ({}, {"auto_map": {"AutoTokenizer": [None, "code.Mine"]}}),
        ({"model_type": None}, {}),
    ],
)
def test_whatever_is_not_certain_is_left_to_transformers(
    model: dict[str, Any], tokenizer: dict[str, Any], tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, ["a"])
    config = tmp_path / "tokenizer_config.json"
    said = json.loads(config.read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    assert _is_plain(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"} | model))
    config.write_text(json.dumps(said | tokenizer))
    assert not _is_plain(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, "", "[1]", "nonsense", "\x80"])
def test_files_that_are_missing_or_broken_are_left_to_transformers(
    name: str, content: str | None, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, ["a"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    assert _is_plain(tmp_path) == (name == "tokenizer.json" and content is not None)


def test_a_name_of_the_hub_is_left_to_transformers() -> None:
    assert not _is_plain(Path("somebody/some-model"))
