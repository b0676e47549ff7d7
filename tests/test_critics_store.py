"""The critique store: several processes, gaps, hostile text."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

from capo_ray.critics import CritiqueStore
from capo_ray.critics.store import request_key
from capo_ray.types import Critique, Problem, Provenance

VOTE = Critique(
    frozenset({2, 0}), False, "text", "", Provenance("m", "key", 0, seed=7, prompt_tokens=9, output_tokens=3)
)


def numbered(index: int, text: str = "text") -> Critique:
    return replace(VOTE, text=text, provenance=replace(VOTE.provenance, vote_index=index))


def fill(path: str, name: str) -> None:
    store = CritiqueStore(path)
    for key in range(40):
        store.write(f"key {key}", [numbered(i, name) for i in range(3)])
    store.close()


def test_a_critique_comes_back_as_it_went_in_and_says_that_it_is_cached(tmp_path: Path) -> None:
    store = CritiqueStore(tmp_path / "store.sqlite")
    odd = Critique(None, None, "lone \ud800 surrogate \x00 nul", "no verdict", Provenance("m", "key", 1))
    store.write("key", [VOTE, odd])
    first, second = store.read("key", 4)
    assert first == replace(VOTE, provenance=replace(VOTE.provenance, cached=True))
    assert (second.flagged, second.reason) == (None, "no verdict")
    assert "nul" in second.text


def test_votes_after_a_gap_are_not_read(tmp_path: Path) -> None:
    store = CritiqueStore(tmp_path / "store.sqlite")
    store.write("key", [numbered(0), numbered(2)])
    assert len(store.read("key", 4)) == 1


def test_what_is_written_once_stays(tmp_path: Path) -> None:
    store = CritiqueStore(tmp_path / "store.sqlite")
    store.write("key", [numbered(0, "first")])
    store.write("key", [numbered(0, "second")])
    assert [c.text for c in store.read("key", 1)] == ["first"]


def test_processes_share_a_store_without_losing_a_vote(tmp_path: Path) -> None:
    path = str(tmp_path / "store.sqlite")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = CritiqueStore(path)
    assert len(store) == 120
    for key in range(40):
        assert len({c.text for c in store.read(f"key {key}", 3)}) == 1  # one process's votes, not a mix


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
