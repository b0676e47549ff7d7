"""The critique store: one holder, damage, gaps, hostile text."""

import asyncio
import multiprocessing
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from capo_ray.config.sections import CriticConfig
from capo_ray.critics import CritiqueStore
from capo_ray.critics.guarded import GuardedStore
from capo_ray.critics.store import StoreHeld, request_key
from capo_ray.place.judging import judge_on
from capo_ray.types import Critique, Problem, Provenance

VOTE = Critique(
    frozenset({2, 0}), False, "text", "", Provenance("m", "key", 0, seed=7, prompt_tokens=9, output_tokens=3)
)


def numbered(index: int, text: str = "text") -> Critique:
    return replace(VOTE, text=text, provenance=replace(VOTE.provenance, vote_index=index))


def hold(path: str, opened: Any, let_go: Any) -> None:
    CritiqueStore(path).write("key", [numbered(0, "theirs")])
    opened.set()
    let_go.wait(60)
    os._exit(1)


def test_a_critique_comes_back_as_it_went_in_and_says_that_it_is_cached(tmp_path: Path) -> None:
    store = CritiqueStore(tmp_path / "store.sqlite")
    odd = Critique(None, None, "lone \ud800 surrogate \x00 nul", "no verdict", Provenance("m", "key", 1))
    store.write("key", [VOTE, odd])
    first, second = store.read("key", 4)
    assert first == replace(VOTE, provenance=replace(VOTE.provenance, cached=True))
    assert (second.flagged, second.reason) == (None, "no verdict")
    assert "nul" in second.text


def test_votes_of_a_critic_are_of_what_its_directory_held_then_and_not_of_what_it_holds_now(tmp_path: Path) -> None:
    """Else a critic that was taught again under its name would be given its older self's votes."""

    def model_of(directory: Path, weight: float) -> str:
        directory.mkdir(exist_ok=True)
        save_file({"a": np.zeros((600, 600), np.float32), "b": np.full(300, weight)}, directory / "model.safetensors")
        engine: Any = SimpleNamespace(spec=SimpleNamespace(model_path=str(directory)), tokenizer=object())
        judge: Any = judge_on(engine, CriticConfig(), "majority", 1, None)
        return str(judge._source.model)

    first = model_of(tmp_path / "judge", 1.0)
    assert first.startswith(f"{tmp_path / 'judge'}@") and first == model_of(tmp_path / "judge", 1.0)
    assert model_of(tmp_path / "judge", 1.5) != first
    assert model_of(tmp_path / "copy", 1.0).endswith(first[-12:]), "on another node"
    (tmp_path / "judge" / "model.safetensors").unlink()
    engine: Any = SimpleNamespace(spec=SimpleNamespace(model_path=str(tmp_path / "judge")), tokenizer=object())
    judge: Any = judge_on(engine, CriticConfig(), "majority", 1, None)
    assert judge._source.model == str(tmp_path / "judge")


def test_votes_after_a_gap_are_not_read(tmp_path: Path) -> None:
    store = CritiqueStore(tmp_path / "store.sqlite")
    store.write("key", [numbered(0), numbered(2)])
    assert len(store.read("key", 4)) == 1


def test_what_is_written_once_stays(tmp_path: Path) -> None:
    store = CritiqueStore(tmp_path / "store.sqlite")
    store.write("key", [numbered(0, "first")])
    store.write("key", [numbered(0, "second")])
    assert [c.text for c in store.read("key", 1)] == ["first"]


def test_a_file_that_another_process_holds_is_refused_and_waited_for_until_it_goes(tmp_path: Path) -> None:
    path = str(tmp_path / "store.sqlite")
    context = multiprocessing.get_context("spawn")
    opened, let_go = context.Event(), context.Event()
    process = context.Process(target=hold, args=(path, opened, let_go))
    process.start()
    assert opened.wait(60)
    with pytest.raises(StoreHeld, match="is held by another process"):
        CritiqueStore(path, held_s=0.3)
    let_go.set()  # by its death, without a close
    store = CritiqueStore(path, held_s=30)
    process.join(60)
    assert [c.text for c in store.read("key", 4)] == ["theirs"]


def test_a_damaged_row_is_dropped_counted_and_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = CritiqueStore(path)
    store.write_all({"key": [numbered(i, f"vote {i}") for i in range(3)], "other": [numbered(0)]})
    store.close()
    raw = path.read_bytes()
    assert raw.count(b"vote 1") == 1
    path.write_bytes(raw.replace(b"vote 1", b"v\xffte 1"))  # no text of UTF-8 any more either
    store = CritiqueStore(path)
    assert [c.text for c in store.read("key", 3)] == ["vote 0"]
    assert (store.num_damaged, len(store)) == (1, 3)
    assert [c.text for c in store.read("other", 3)] == ["text"]
    store.write("key", [numbered(1, "anew")])
    assert [c.text for c in store.read("key", 3)] == ["vote 0", "anew", "vote 2"]
    assert store.num_damaged == 1


def test_a_store_that_fails_costs_new_calls_and_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, now = tmp_path / "store.sqlite", 0.0
    path.write_bytes(b"SQLite format 3\x00" + b"no more" * 1000)

    async def use() -> None:
        nonlocal now
        store = GuardedStore(path, clock=lambda: now)
        for _ in range(5):
            await store.write({"key": [numbered(0)]})
            assert await store.read(["key"], 4) == {}
        assert store.figures()["critic/store_errors_total"] == 3, "after three in a row it is left alone"
        path.unlink()  # what the sentence asks for
        now = 61.0
        await store.write({"key": [numbered(0)]})
        assert len((await store.read(["key"], 4))["key"]) == 1

    asyncio.run(use())
    assert [r.getMessage().count("store.sqlite") for r in caplog.records] == [1]


def test_a_file_of_the_first_layout_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    key = "ab" * 32
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE critiques (key TEXT NOT NULL, vote_index INTEGER NOT NULL, flagged TEXT, overall INTEGER, "
            "text TEXT NOT NULL, reason TEXT NOT NULL, model TEXT NOT NULL, seed INTEGER, prompt_tokens INTEGER NOT "
            "NULL, output_tokens INTEGER NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (key, vote_index)) WITHOUT ROWID"
        )
        db.execute("INSERT INTO critiques VALUES (?, 0, '[0, 2]', 0, 'text', '', 'm', 7, 9, 3, 0.5)", (key,))
    db.close()
    (critique,) = CritiqueStore(path).read(key, 4)
    assert (critique.flagged, critique.text, critique.provenance.seconds) == (frozenset({0, 2}), "text", 0.5)


def test_any_part_of_a_request_changes_its_key() -> None:
    problem = Problem("p", "q", "a", solution="s")
    base = (problem, ("x", "y"), "rubric", "m", {"temperature": 0.7})
    variants = [
        (replace(problem, prompt="r"), *base[1:]),
        (replace(problem, solution=None), *base[1:]),
        (problem, ("xy",), *base[2:]),
        (problem, ("x", "y"), "other", *base[3:]),
        (*base[:3], "m2", base[4]),
        (*base[:4], {"temperature": 0.8}),
    ]
    keys = {request_key(*v) for v in [base, *variants]}  # type: ignore[arg-type]
    assert len(keys) == 7
    assert request_key(replace(problem, id="other"), *base[1:]) == request_key(*base)  # type: ignore[arg-type]
